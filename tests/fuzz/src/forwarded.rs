//! The headers in which proxies say where a request comes from.

use super::request::Request;
use http::Uri;
use nerve_core::manifest::Network;
use nerve_gateway::fuzzing::read_origin;
use std::net::IpAddr;

/// A request's first line is the address that the connection comes from, and `tls` where it is encrypted.
pub fn run(data: &[u8]) {
    let Some(Request { line, headers, .. }) = Request::read(data) else { return };
    let mut words = line.split(' ');
    let Some(peer) = words.next().and_then(|word| word.parse::<IpAddr>().ok()) else { return };
    let tls = words.next() == Some("tls");
    let trusted = ["10.0.0.0/8", "2001:db8:aaaa::/48"].map(|network| network.parse::<Network>().expect("a network"));
    let trusts = |address: &IpAddr| trusted.iter().any(|network| network.contains(address));
    let Some((client, base)) = read_origin((peer, tls), &trusted, &Uri::from_static("/hooks/x"), &headers) else {
        assert!(trusts(&peer.to_canonical()), "headers of strangers are not compared");
        return;
    };
    let client = client.expect("each connection has a client");
    if !trusts(&peer.to_canonical()) {
        assert_eq!(client, peer.to_canonical(), "a stranger's headers are believed");
        assert!(base.as_ref().is_none_or(|base| tls && base.starts_with("https://")), "{base:?}");
    }
    if let Some(base) = base {
        let base: Uri = base.parse().expect("a base is a URL");
        assert!(base.authority().is_some() && matches!(base.scheme_str(), Some("http" | "https")), "{base}");
    }
}
