//! What a bridge is called. A page that a browser has from elsewhere reaches this host's ports too, under a name of its own
//! that leads here (DNS rebinding): so a request must name the bridge itself, by its own host and port or by a name that it
//! was given, in `Host` and, where a browser sends it, in `Origin`.

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
    /// Further names by which clients reach it, in lower case; one without a port is of any.
    hosts: Vec<String>,
    /// Where pages that may use it come from.
    origins: Vec<String>,
}

/// Longest part of what a stranger has sent that is said back.
const SAID_CHARACTERS_MAX: usize = 100;

impl Names {
    /// Of a bridge that was told to listen on `listen`, and does on `port`.
    pub(super) fn of(listen: &str, port: u16, hosts: &[String], origins: &[String]) -> Self {
        let host = listen.rsplit_once(':').map_or(listen, |(host, _)| host);
        let hosts = hosts.iter().map(|host| host.to_ascii_lowercase()).collect();
        let origins = origins.iter().map(|origin| origin.trim_end_matches('/').to_ascii_lowercase()).collect();
        Self { host: bare(host).to_ascii_lowercase(), port, hosts, origins }
    }

    /// Why a request that came to this address of the bridge is refused, if it is, with what would allow it.
    pub(super) fn refuse(&self, at: SocketAddr, uri: &Uri, headers: &HeaderMap) -> Option<String> {
        let mut hosts = headers.get_all(HOST).iter();
        let host = match (uri.authority(), hosts.next(), hosts.next()) {
            (_, _, Some(_)) => None,
            (Some(authority), ..) => Some(authority.clone()),
            (None, Some(host), None) => Authority::try_from(host.as_bytes()).ok(),
            (None, None, None) => None,
        };
        let Some(host) = host else {
            return Some("the Host header is missing, or names no host".to_owned());
        };
        if !self.is_own(at, &host) {
            let said = said(host.as_str());
            return Some(format!(
                "the Host header `{said}` does not name this bridge\nhint: if clients reach it by that name, put it into `run.hosts`"
            ));
        }
        let foreign = headers.get_all(ORIGIN).iter().find(|origin| !self.is_allowed(at, origin.as_bytes()))?;
        let said = said(&String::from_utf8_lossy(foreign.as_bytes()));
        Some(format!(
            "pages from the Origin `{said}` may not use this bridge\nhint: if they should, put it into `run.origins`"
        ))
    }

    /// Whether pages from an origin may use the bridge: the bridge's own, and those that it was given.
    pub(super) fn is_allowed(&self, at: SocketAddr, origin: &[u8]) -> bool {
        let given = std::str::from_utf8(origin).is_ok_and(|text| {
            let text = text.to_ascii_lowercase();
            self.origins.contains(&text)
        });
        let own = || {
            let uri = Uri::try_from(origin).ok();
            uri.filter(|uri| uri.scheme_str() == Some("http") && uri.query().is_none() && uri.path() == "/")
                .and_then(|uri| uri.authority().cloned())
                .is_some_and(|authority| self.is_own(at, &authority))
        };
        // Programs that are no browsers send none.
        given || own()
    }

    /// Whether an authority is a name that the bridge was given.
    fn is_given(&self, authority: &Authority) -> bool {
        let (whole, host) = (authority.as_str().to_ascii_lowercase(), authority.host().to_ascii_lowercase());
        !whole.contains('@') && self.hosts.iter().any(|name| *name == whole || *name == host || *name == bare(&host))
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
        if self.is_given(authority) {
            return true;
        }
        let loopback = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];
        port == Some(self.port)
            && !written.contains('@')
            && (host == self.host
                || host == "localhost"
                || address.is_some_and(|address| loopback.contains(&address) || address == at.ip().to_canonical()))
    }
}

/// What a stranger has sent, as it may be said back.
fn said(text: &str) -> String {
    text.chars().filter(|character| !character.is_control()).take(SAID_CHARACTERS_MAX).collect()
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
        Names::of(listen, at.port(), &[], &[]).refuse(at, &Uri::from_static("/mcp"), &headers).is_some()
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
        let (names, at) = (Names::of(listen, 8801, &[], &[]), own.parse().expect("an address"));
        assert!(names.refuse(at, &Uri::from_static("/"), &twice).is_some());
        assert!(names.refuse(at, &Uri::from_static("/"), &HeaderMap::new()).is_some());
        let absolute = Uri::from_static("http://evil.example:8801/mcp");
        let mut headers = HeaderMap::new();
        headers.insert(HOST, HeaderValue::from_static("127.0.0.1:8801"));
        assert!(names.refuse(at, &absolute, &headers).is_some(), "the target counts before the header");
    }

    #[test]
    fn names_and_origins_that_it_was_given_are_its_own_and_the_refusal_says_which_setting_is_lacking() {
        let hosts = ["tools.example".to_owned(), "exact.example:443".to_owned()];
        let names = Names::of("127.0.0.1:8801", 8801, &hosts, &["https://page.example".to_owned()]);
        let at: SocketAddr = "127.0.0.1:8801".parse().expect("an address");
        let refused = |host: &str, origin: Option<&str>| {
            let mut headers = HeaderMap::new();
            headers.insert(HOST, HeaderValue::from_str(host).expect("a value"));
            if let Some(origin) = origin {
                headers.insert(ORIGIN, HeaderValue::from_str(origin).expect("a value"));
            }
            names.refuse(at, &Uri::from_static("/mcp"), &headers)
        };
        for host in ["tools.example", "Tools.Example:8443", "exact.example:443", "127.0.0.1:8801"] {
            assert_eq!(refused(host, Some("https://page.example")), None, "{host}");
        }
        for host in ["exact.example", "exact.example:80", "x.tools.example", "a@tools.example"] {
            assert!(refused(host, None).is_some_and(|why| why.contains("run.hosts")), "{host}");
        }
        for origin in ["http://page.example", "https://page.example:8443", "https://page.example.evil", "null"] {
            assert!(refused("tools.example", Some(origin)).is_some_and(|why| why.contains("run.origins")), "{origin}");
        }
    }
}
