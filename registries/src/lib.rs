//! A door to a registry of packages. pip and npm go to an address on this machine; what they ask for is asked of the
//! registry with its credentials, which they never have: what runs of a package beside them cannot read them either.
//!
//! The door also decides what comes from where. A name that the registry has is never taken from the public one; the
//! package that it is opened for never is at all.

mod door;
mod npm;
mod peer;
mod simple;
mod upstream;

pub use self::door::Door;
pub use self::simple::{Listed, Project};
pub use self::upstream::{Credentials, Error, Kind, Registry};
