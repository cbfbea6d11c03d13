//! The socket between a supervisor and its server process: the server's standard input.
//!
//! First, the supervisor sends an [`Assignment`] with descriptors. Later, it may send [`DRAIN`], and the server reports
//! once that it is [`Ready`]. Assignment and readiness are one line of JSON each.

use crate::broker::LocalBroker;
use anyhow::{Context, bail};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    recvmsg, sendmsg,
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::{
    io::{IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::net::UnixStream,
    },
};

/// Maximum size of a message.
const MAX_MESSAGE_BYTES: usize = 16 << 10;
/// Maximum descriptors of an assignment.
const MAX_DESCRIPTORS: usize = 4;

/// The order to shut down gracefully.
pub(super) const DRAIN: &str = "drain\n";

/// First message to a server process.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Assignment {
    /// The nats-server, if the supervisor started it.
    pub(crate) broker: Option<LocalBroker>,
    /// Kinds of the descriptors, in their order.
    pub(super) descriptors: Vec<DescriptorKind>,
}

/// The kind of a descriptor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum DescriptorKind {
    /// The gateway's socket.
    Listener,
    /// The shared memory that records events in flight.
    InFlight,
    /// The lock of the data directory, held while the server runs.
    Lock,
}

/// Report of a server process that is ready.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Ready {
    /// URL of its gateway, if it has one.
    pub(crate) gateway: Option<String>,
    /// URL of NATS.
    pub(crate) nats: String,
}

/// Serializes a message.
pub(super) fn line(message: &impl Serialize) -> anyhow::Result<Vec<u8>> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    if line.len() > MAX_MESSAGE_BYTES {
        bail!("a message of the supervisor link is too large: {} bytes", line.len());
    }
    Ok(line)
}

/// Parses a message.
pub(super) fn parse<T: DeserializeOwned>(line: &str) -> anyhow::Result<T> {
    serde_json::from_str(line).with_context(|| format!("unknown message `{}`", line.trim_end()))
}

/// Sends an assignment and its descriptors.
pub(super) fn send(
    socket: &UnixStream,
    broker: Option<&LocalBroker>,
    descriptors: &[(DescriptorKind, BorrowedFd<'_>)],
) -> anyhow::Result<()> {
    let kinds = descriptors.iter().map(|(kind, _)| *kind).collect();
    let line = line(&Assignment { broker: broker.cloned(), descriptors: kinds })?;
    let passed: Vec<_> = descriptors.iter().map(|(_, descriptor)| *descriptor).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !ancillary.push(SendAncillaryMessage::ScmRights(&passed)) {
        bail!("an assignment cannot contain {} descriptors", passed.len());
    }
    let sent = sendmsg(socket, &[IoSlice::new(&line)], &mut ancillary, SendFlags::NOSIGNAL)?;
    if sent < line.len() {
        bail!("the assignment was sent only partially");
    }
    Ok(())
}

/// An assignment with its descriptors.
pub(super) struct ReceivedAssignment {
    pub(super) assignment: Assignment,
    pub(super) descriptors: Vec<(DescriptorKind, OwnedFd)>,
    /// The socket for later messages.
    pub(super) socket: UnixStream,
}

/// Receives an assignment on this process's standard input, which then is the socket for orders.
pub(super) fn receive() -> anyhow::Result<ReceivedAssignment> {
    let socket = UnixStream::from(std::io::stdin().as_fd().try_clone_to_owned()?);
    let mut text = vec![0; MAX_MESSAGE_BYTES];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let received = recvmsg(&socket, &mut [IoSliceMut::new(&mut text)], &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
    let line = std::str::from_utf8(text.get(..received.bytes).unwrap_or_default())?;
    let assignment: Assignment = parse(line)?;
    let rights = ancillary.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
        _ => None,
    });
    let descriptors: Vec<OwnedFd> = rights.flatten().collect();
    if descriptors.len() != assignment.descriptors.len() {
        bail!("received {} descriptors, expected {}", descriptors.len(), assignment.descriptors.len());
    }
    let descriptors = assignment.descriptors.iter().copied().zip(descriptors).collect();
    Ok(ReceivedAssignment { assignment, descriptors, socket })
}
