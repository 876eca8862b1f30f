//! What a bridge is called. A page that a browser has from elsewhere reaches this host's ports too, under a name of its own
//! that leads here (DNS rebinding): so a request must name the bridge itself, by its own host and port, in `Host` and, where
//! a browser sends it, in `Origin`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use axum::http::header::{HOST, ORIGIN};
use axum::http::uri::Authority;
use axum::http::{HeaderMap, Uri};

/// The names of one bridge.
#[derive(Clone, Debug)]
pub(super) struct Names {
    /// The host as it was asked to listen on, in lower case, without brackets.
    host: String,
    port: u16,
}

impl Names {
    /// Of a bridge that was told to listen on `listen`, and does on `port`.
    pub(super) fn of(listen: &str, port: u16) -> Self {
        let host = listen.rsplit_once(':').map_or(listen, |(host, _)| host);
        Self { host: bare(host).to_ascii_lowercase(), port }
    }

    /// Why a request that came to this address of the bridge is refused, if it is.
    pub(super) fn refuse(&self, at: SocketAddr, uri: &Uri, headers: &HeaderMap) -> Option<&'static str> {
        let mut hosts = headers.get_all(HOST).iter();
        let host = match (uri.authority(), hosts.next(), hosts.next()) {
            (_, _, Some(_)) => None,
            (Some(authority), ..) => Some(authority.clone()),
            (None, Some(host), None) => Authority::try_from(host.as_bytes()).ok(),
            (None, None, None) => None,
        };
        if !host.is_some_and(|host| self.is_own(at, &host)) {
            return Some("the Host header does not name this bridge");
        }
        let mut origins = headers.get_all(ORIGIN).iter();
        let own = |origin: &[u8]| {
            let uri = Uri::try_from(origin).ok();
            uri.filter(|uri| uri.scheme_str() == Some("http") && uri.query().is_none() && uri.path() == "/")
                .and_then(|uri| uri.authority().cloned())
                .is_some_and(|authority| self.is_own(at, &authority))
        };
        // Programs that are no browsers send none.
        let foreign = !origins.all(|origin| own(origin.as_bytes()));
        foreign.then_some("the Origin header does not name this bridge")
    }

    /// Whether an authority is one of this bridge's: the host it was told to listen on, the address that was reached, or
    /// this machine's own name for itself; and its port.
    fn is_own(&self, at: SocketAddr, authority: &Authority) -> bool {
        /// What stands where no port is written (RFC 9110, section 4.2.1).
        const USUAL_PORT: u16 = 80;
        let written = authority.as_str();
        let port = match authority.port() {
            Some(port) => Some(port.as_u16()),
            // `host:` and a port that is none are nobody's.
            None if written.ends_with(authority.host()) => Some(USUAL_PORT),
            None => None,
        };
        let host = bare(authority.host()).to_ascii_lowercase();
        let address = host.parse::<IpAddr>().ok();
        let loopback = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];
        port == Some(self.port)
            && !written.contains('@')
            && (host == self.host
                || host == "localhost"
                || address.is_some_and(|address| loopback.contains(&address) || address == at.ip().to_canonical()))
    }
}

/// A host without the brackets of an IPv6 address.
fn bare(host: &str) -> &str {
    host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host)
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    fn refused(listen: &str, at: &str, host: &str, origin: Option<&str>) -> bool {
        let at: SocketAddr = at.parse().expect("an address");
        let mut headers = HeaderMap::new();
        headers.insert(HOST, HeaderValue::from_str(host).expect("a value"));
        if let Some(origin) = origin {
            headers.insert(ORIGIN, HeaderValue::from_str(origin).expect("a value"));
        }
        Names::of(listen, at.port()).refuse(at, &Uri::from_static("/mcp"), &headers).is_some()
    }

    #[test]
    fn a_request_names_the_bridge_itself() {
        let own = [
            ("127.0.0.1:8801", "127.0.0.1:8801", "127.0.0.1:8801", None),
            ("127.0.0.1:8801", "127.0.0.1:8801", "LocalHost:8801", Some("http://localhost:8801")),
            ("127.0.0.1:8801", "127.0.0.1:8801", "127.0.0.1:8801", Some("http://127.0.0.1:8801")),
            ("[::1]:8801", "[::1]:8801", "[::1]:8801", Some("http://[::1]:8801")),
            ("0.0.0.0:8801", "10.0.0.5:8801", "10.0.0.5:8801", None),
            ("[::]:8801", "[::ffff:10.0.0.5]:8801", "10.0.0.5:8801", None),
            ("tools.lan:80", "10.0.0.5:80", "tools.lan", Some("http://tools.lan")),
        ];
        for (listen, at, host, origin) in own {
            assert!(!refused(listen, at, host, origin), "{listen} {host} {origin:?}");
        }
    }

    #[test]
    fn whatever_names_another_is_refused() {
        let (listen, own) = ("127.0.0.1:8801", "127.0.0.1:8801");
        for host in [
            "evil.example:8801",
            "localhost",
            "localhost:80",
            "127.0.0.1.evil.example:8801",
            "10.0.0.5:8801",
            "",
            "x@127.0.0.1:8801",
        ] {
            assert!(refused(listen, own, host, None), "{host}");
        }
        let foreign = [
            "http://evil.example:8801",
            "http://localhost:1234",
            "http://localhost",
            "https://localhost:8801",
            "null",
            "http://localhost:8801/page",
            "http://localhost:8801@evil.example",
            "",
        ];
        for origin in foreign {
            assert!(refused(listen, own, own, Some(origin)), "{origin}");
        }
        let mut twice = HeaderMap::new();
        twice.append(HOST, HeaderValue::from_static("127.0.0.1:8801"));
        twice.append(HOST, HeaderValue::from_static("127.0.0.1:8801"));
        let (names, at) = (Names::of(listen, 8801), own.parse().expect("an address"));
        assert!(names.refuse(at, &Uri::from_static("/"), &twice).is_some());
        assert!(names.refuse(at, &Uri::from_static("/"), &HeaderMap::new()).is_some());
        let absolute = Uri::from_static("http://evil.example:8801/mcp");
        let mut headers = HeaderMap::new();
        headers.insert(HOST, HeaderValue::from_static("127.0.0.1:8801"));
        assert!(names.refuse(at, &absolute, &headers).is_some(), "the target counts before the header");
    }
}
