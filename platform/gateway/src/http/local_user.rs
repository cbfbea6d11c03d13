//! The local user of a loopback connection, by `sock_diag(7)`: a lookup in the kernel's connection table of about 10 µs.

use nix::{
    sys::{
        socket::{
            AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto, setsockopt, socket,
            sockopt,
        },
        time::{TimeVal, TimeValLike},
    },
    unistd::geteuid,
};
use std::{
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    os::fd::AsRawFd,
};

// linux/netlink.h, linux/sock_diag.h, linux/inet_diag.h.
const HEADER_BYTES: usize = 16;
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const NLM_F_REQUEST: u16 = 1;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
const IPPROTO_TCP: u8 = 6;
/// Offsets of the user and of the socket's inode in `inet_diag_msg`.
const UID_OFFSET: usize = HEADER_BYTES + 64;
const INODE_OFFSET: usize = UID_OFFSET + 4;
/// Maximum time of the lookup.
const TIMEOUT_SECONDS: i64 = 1;
const ROOT: u32 = 0;

/// The user of a connection's peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Owner {
    /// The user of this process, or root.
    Own,
    /// Another user, by number.
    Other(u32),
    /// The connection is closed.
    Gone,
}

impl Owner {
    /// Looks up the connection from `client` to `server`, both on loopback.
    ///
    /// # Errors
    /// When the kernel does not report users.
    pub(crate) fn of(client: SocketAddr, server: SocketAddr) -> io::Result<Self> {
        let answer = ask(&request(client, server))?;
        let word =
            |at: usize| answer.get(at..at + 4).and_then(|bytes| Some(u32::from_ne_bytes(bytes.try_into().ok()?)));
        let kind = answer.get(4..6).and_then(|bytes| Some(u16::from_ne_bytes(bytes.try_into().ok()?)));
        match (kind, word(UID_OFFSET), word(INODE_OFFSET)) {
            // A socket without a process has no user.
            (Some(SOCK_DIAG_BY_FAMILY), Some(_), Some(0)) => Ok(Self::Gone),
            (Some(SOCK_DIAG_BY_FAMILY), Some(user), Some(_)) if user == geteuid().as_raw() || user == ROOT => {
                Ok(Self::Own)
            }
            (Some(SOCK_DIAG_BY_FAMILY), Some(user), Some(_)) => Ok(Self::Other(user)),
            _ => match word(HEADER_BYTES).map(u32::cast_signed) {
                Some(errno) if -errno == nix::libc::ENOENT => Ok(Self::Gone),
                Some(errno) => Err(io::Error::from_raw_os_error(-errno)),
                None => Err(io::ErrorKind::UnexpectedEof.into()),
            },
        }
    }

    /// Whether this kernel reports users, tested with a connection of this process to itself.
    pub(crate) fn is_supported() -> bool {
        let asked = || {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
            let client = TcpStream::connect(listener.local_addr()?)?;
            Self::of(client.local_addr()?, listener.local_addr()?)
        };
        matches!(asked(), Ok(Self::Own))
    }
}

/// A request for a TCP connection: `nlmsghdr` and `inet_diag_req_v2`.
fn request(client: SocketAddr, server: SocketAddr) -> Vec<u8> {
    let (client, server) = (canonical(client), canonical(server));
    let family = if client.is_ipv4() { AF_INET } else { AF_INET6 };
    let mut body = vec![family, IPPROTO_TCP, 0, 0];
    body.extend(u32::MAX.to_ne_bytes()); // in any state
    for end in [client, server] {
        body.extend(end.port().to_be_bytes());
    }
    for end in [client, server] {
        let mut address = [0; 16];
        match end.ip() {
            IpAddr::V4(ip) => address[..4].copy_from_slice(&ip.octets()),
            IpAddr::V6(ip) => address.copy_from_slice(&ip.octets()),
        }
        body.extend(address);
    }
    body.extend(0u32.to_ne_bytes()); // by any interface
    body.extend([0xff; 8]); // whichever socket it is
    let length = u32::try_from(HEADER_BYTES + body.len()).unwrap_or_default();
    let mut message = length.to_ne_bytes().to_vec();
    message.extend(SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    message.extend(NLM_F_REQUEST.to_ne_bytes());
    message.extend([0; 8]);
    message.extend(body);
    message
}

fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

fn ask(question: &[u8]) -> io::Result<Vec<u8>> {
    let socket =
        socket(AddressFamily::Netlink, SockType::Datagram, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkSockDiag)?;
    setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::seconds(TIMEOUT_SECONDS))?;
    sendto(socket.as_raw_fd(), question, &NetlinkAddr::new(0, 0), MsgFlags::empty())?;
    let mut answer = vec![0; 1024];
    let length = recv(socket.as_raw_fd(), &mut answer, MsgFlags::empty())?;
    answer.truncate(length);
    Ok(answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn user_of_a_connection_is_told_until_its_end() {
        assert!(Owner::is_supported());
        for (listen, connect) in
            [("127.0.0.1", "127.0.0.1"), ("[::1]", "[::1]"), ("[::]", "127.0.0.1"), ("[::]", "[::ffff:127.0.0.1]")]
        {
            let listener = TcpListener::bind(format!("{listen}:0")).unwrap();
            let port = listener.local_addr().unwrap().port();
            let client = TcpStream::connect(format!("{connect}:{port}")).unwrap();
            let (server, from) = listener.accept().unwrap();
            let here = server.local_addr().unwrap();
            assert_eq!(Owner::of(from, here).unwrap(), Owner::Own, "{listen} {connect}");
            drop(client);
            assert_eq!(Owner::of(from, here).unwrap(), Owner::Gone, "{listen} {connect}");
        }
    }
}
