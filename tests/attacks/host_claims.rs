//! A host that was broken into says what is not so.
