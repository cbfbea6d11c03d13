//! The egress policy of sinks: they may reach public addresses and those in `allow`.
//!
//! It prevents server-side request forgery: a chosen URL must not reach a metadata service or database that only this machine
//! can reach. Each lookup is checked, and the client connects to exactly the checked addresses, so a second lookup (DNS rebinding)
//! cannot bypass the check. Redirects are not followed.

use futures::future::BoxFuture;
use nerve_core::manifest::Network;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
};

/// The error for an address that a sink may not reach.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{address} is {what}, which sinks may not reach: to allow it, set allow = [\"{address}\"]")]
pub(super) struct BlockedAddress {
    address: IpAddr,
    what: &'static str,
}

/// The networks that are allowed in addition to public addresses.
#[derive(Debug, Clone)]
pub(super) struct EgressPolicy(Arc<[Network]>);

impl EgressPolicy {
    pub(super) fn new(allow: impl IntoIterator<Item = Network>) -> Self {
        Self(allow.into_iter().collect())
    }

    /// Checks one address. An IPv4 address embedded in an IPv6 one is checked as IPv4.
    pub(super) fn check(&self, address: IpAddr) -> Result<(), BlockedAddress> {
        let inner = embedded(address);
        if self.0.iter().any(|network| network.contains(&address) || network.contains(&inner)) {
            return Ok(());
        }
        match not_public(inner) {
            None => Ok(()),
            Some(what) => Err(BlockedAddress { address, what }),
        }
    }

    /// Checks all addresses of a lookup. One blocked address blocks all, as a name with both kinds is suspicious.
    fn check_all(&self, addresses: Vec<IpAddr>) -> Result<Vec<IpAddr>, BlockedAddress> {
        addresses.iter().try_for_each(|address| self.check(*address))?;
        Ok(addresses)
    }
}

/// Returns the IPv4 address embedded in an IPv6 one: mapped, or behind the well-known NAT64 prefix.
fn embedded(address: IpAddr) -> IpAddr {
    let IpAddr::V6(v6) = address else { return address };
    let [.., a, b, c, d] = v6.octets();
    match v6.segments() {
        [0, 0, 0, 0, 0, 0xffff, ..] | [0x64, 0xff9b, 0, 0, 0, 0, ..] => IpAddr::V4(Ipv4Addr::new(a, b, c, d)),
        _ => address,
    }
}

/// Returns the kind of an address that is not public (IANA special-purpose address registries, RFC 6890).
fn not_public(address: IpAddr) -> Option<&'static str> {
    match address {
        IpAddr::V4(v4) => not_public_v4(v4),
        IpAddr::V6(v6) => not_public_v6(v6),
    }
}

fn not_public_v4(address: Ipv4Addr) -> Option<&'static str> {
    match address.octets() {
        [0, ..] => Some("this network"),
        [127, ..] => Some("a loopback address"),
        [10, ..] | [172, 16..=31, ..] | [192, 168, ..] => Some("a private address"),
        [100, 64..=127, ..] => Some("a shared address (RFC 6598)"),
        [169, 254, ..] => Some("a link-local address, where clouds keep their metadata"),
        // Azure's wire server, on an address that looks public.
        [168, 63, 129, 16] => Some("a cloud's metadata address"),
        [192, 0, 0, _] => Some("a protocol's address"),
        [192, 0, 2, _] | [198, 51, 100, _] | [203, 0, 113, _] => Some("a documentation address"),
        [192, 88, 99, _] => Some("a 6to4 relay"),
        [198, 18..=19, ..] => Some("a benchmark's address"),
        [224..=239, ..] => Some("a multicast address"),
        [240..=255, ..] => Some("a reserved address"),
        _ => None,
    }
}

fn not_public_v6(address: Ipv6Addr) -> Option<&'static str> {
    match address.segments() {
        [0, 0, 0, 0, 0, 0, 0, 0] => Some("the unspecified address"),
        [0, 0, 0, 0, 0, 0, 0, 1] => Some("a loopback address"),
        [0xfc00..=0xfdff, ..] => Some("a private address"),
        [0xfe80..=0xfebf, ..] => Some("a link-local address"),
        [0xff00..=0xffff, ..] => Some("a multicast address"),
        // Teredo and others, which embed an address of another network.
        [0x2001, 0..=0x1ff, ..] => Some("a protocol's address"),
        [0x2001, 0xdb8, ..] | [0x3fff, 0..=0xfff, ..] => Some("a documentation address"),
        [0x2002, ..] => Some("a 6to4 address"),
        [0x2000..=0x3fff, ..] => None,
        _ => Some("not a global unicast address"),
    }
}

/// A name lookup.
pub(super) type Lookup = Arc<dyn Fn(String) -> BoxFuture<'static, io::Result<Vec<IpAddr>>> + Send + Sync>;

/// The system's resolver.
pub(super) fn system() -> Lookup {
    Arc::new(|name| {
        Box::pin(async move {
            let found = tokio::net::lookup_host((name, 0)).await?;
            Ok(found.map(|address| address.ip()).collect())
        })
    })
}

/// The resolver of an HTTP client, which connects to the returned addresses only.
pub(super) struct EgressResolver {
    pub(super) policy: EgressPolicy,
    pub(super) lookup: Lookup,
}

impl Resolve for EgressResolver {
    fn resolve(&self, name: Name) -> Resolving {
        let (policy, looked_up) = (self.policy.clone(), (self.lookup)(name.as_str().to_owned()));
        Box::pin(async move {
            let checked = policy.check_all(looked_up.await?)?;
            let addresses: Addrs = Box::new(checked.into_iter().map(|address| SocketAddr::new(address, 0)));
            Ok(addresses)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn only_public_addresses_are_allowed_by_default() {
        let policy = EgressPolicy::new([]);
        for refused in [
            "0.0.0.0",
            "10.1.2.3",
            "100.64.0.1",
            "100.100.100.200",
            "127.0.0.1",
            "127.255.255.255",
            "168.63.129.16",
            "169.254.169.254",
            "172.16.0.1",
            "172.31.255.255",
            "192.0.0.192",
            "192.0.2.1",
            "192.88.99.1",
            "192.168.0.1",
            "198.18.0.1",
            "198.19.255.255",
            "198.51.100.1",
            "203.0.113.1",
            "224.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::127.0.0.1",
            "::ffff:127.0.0.1",
            "::ffff:169.254.169.254",
            "64:ff9b::a9fe:a9fe",
            "64:ff9b::10.0.0.1",
            "64:ff9b:1::1",
            "100::1",
            "2001::1",
            "2001:db8::1",
            "2002:7f00:1::",
            "2002:a9fe:a9fe::",
            "3fff::1",
            "5f00::1",
            "fc00::1",
            "fd00:ec2::254",
            "fe80::1",
            "fec0::1",
            "ff02::1",
        ] {
            assert!(policy.check(address(refused)).is_err(), "{refused}");
        }
        for public in [
            "1.1.1.1",
            "8.8.8.8",
            "100.63.255.255",
            "100.128.0.1",
            "168.63.129.17",
            "172.15.0.1",
            "172.32.0.1",
            "192.0.1.1",
            "223.255.255.255",
            "2606:4700:4700::1111",
            "2a00:1450:4001::1",
            "2001:4860:4860::8888",
            "::ffff:8.8.8.8",
            "64:ff9b::8.8.8.8",
        ] {
            assert_eq!(policy.check(address(public)), Ok(()), "{public}");
        }
    }

    #[test]
    fn allowed_network_is_reachable_in_every_notation() {
        let policy = EgressPolicy::new(["10.1.0.0/16", "127.0.0.1", "fd12::/16"].map(|text| text.parse().unwrap()));
        for allowed in ["10.1.2.3", "::ffff:10.1.2.3", "64:ff9b::10.1.2.3", "127.0.0.1", "fd12::1"] {
            assert_eq!(policy.check(address(allowed)), Ok(()), "{allowed}");
        }
        for refused in ["10.2.0.1", "127.0.0.2", "::1", "fd13::1", "::ffff:10.2.0.1"] {
            assert!(policy.check(address(refused)).is_err(), "{refused}");
        }
        let error = policy.check(address("10.2.0.1")).unwrap_err().to_string();
        assert!(error.contains("private") && error.contains("allow = [\"10.2.0.1\"]"), "{error}");
    }

    async fn resolve(policy: EgressPolicy, answers: Vec<IpAddr>) -> Result<Vec<SocketAddr>, String> {
        let lookup: Lookup = Arc::new(move |_| {
            let answers = answers.clone();
            Box::pin(async move { Ok(answers) })
        });
        let resolver = EgressResolver { policy, lookup };
        match resolver.resolve("crm.example".parse().unwrap()).await {
            Ok(addresses) => Ok(addresses.collect()),
            Err(error) => Err(error.to_string()),
        }
    }

    #[tokio::test]
    async fn name_is_checked_by_all_its_addresses() {
        let public =
            resolve(EgressPolicy::new([]), vec![address("8.8.8.8"), address("2a00:1450:4001::1")]).await.unwrap();
        assert_eq!(public.len(), 2);
        for private in [vec!["169.254.169.254"], vec!["8.8.8.8", "10.0.0.1"], vec!["::ffff:127.0.0.1"]] {
            let answers = private.iter().map(|text| address(text)).collect();
            assert!(
                resolve(EgressPolicy::new([]), answers).await.unwrap_err().contains("may not reach"),
                "{private:?}"
            );
        }
        let allowed = EgressPolicy::new(["10.0.0.0/8".parse().unwrap()]);
        assert_eq!(resolve(allowed, vec![address("10.0.0.1")]).await.unwrap().len(), 1);
    }
}
