//! Who has opened a connection on this machine, as the kernel has it.

use std::net::{Ipv4Addr, SocketAddr};

/// The user whose program has opened a connection from one address of this machine to another. `None` if the kernel does
/// not say so: the connection may be gone by then.
pub(crate) fn user(from: SocketAddr, to: SocketAddr) -> Option<u32> {
    user_in(&std::fs::read_to_string("/proc/net/tcp").ok()?, from, to)
}

/// The same of a table as in `/proc/net/tcp` (proc_pid_net(5)).
fn user_in(table: &str, from: SocketAddr, to: SocketAddr) -> Option<u32> {
    table.lines().skip(1).find_map(|line| {
        let mut fields = line.split_whitespace().skip(1);
        let ends = (address(fields.next()?)?, address(fields.next()?)?);
        // State, queues, timer, retransmissions; then the user.
        if ends == (from, to) { fields.nth(4)?.parse().ok() } else { None }
    })
}

/// An address as the table has it: the bytes of the address as a number of this machine, and the port, hexadecimal.
fn address(text: &str) -> Option<SocketAddr> {
    let (host, port) = text.split_once(':')?;
    let host = u32::from_str_radix(host, 16).ok()?;
    Some((Ipv4Addr::from(host.to_ne_bytes()), u16::from_str_radix(port, 16).ok()?).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_says_whose_a_connection_is() {
        let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
        let to = listener.local_addr().expect("an address");
        let client = std::net::TcpStream::connect(to).expect("a connection");
        let from = client.local_addr().expect("an address");
        let own = std::fs::read_to_string("/proc/self/status").expect("a status");
        let own = own.lines().find_map(|line| line.strip_prefix("Uid:")?.split_whitespace().next()?.parse().ok());
        assert_eq!(user(from, to), own);
        assert!(own.is_some());
        assert_eq!(user(from, from), None);
    }
}
