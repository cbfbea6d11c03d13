//! The socket between a supervisor and its server process, which is the server's standard input.
//!
//! First the supervisor sends an [`Assignment`], with the descriptors that it names. Later it sends [`DRAIN`] at most, and the server
//! says once that it is [`Ready`]. Assignment and readiness are a line of JSON each.

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

/// Bytes of the longest message.
const MAX_MESSAGE_BYTES: usize = 16 << 10;
/// Descriptors that one assignment may hand over.
const MAX_DESCRIPTORS: usize = 4;

/// The line that tells a server process to end, once what is running has ended.
pub(super) const DRAIN: &str = "drain\n";

/// What a server process is told at its start.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Assignment {
    /// The nats-server to use, where the supervisor started it.
    pub(crate) broker: Option<LocalBroker>,
    /// What the descriptors are, in their order.
    pub(super) descriptors: Vec<DescriptorKind>,
}

/// What a descriptor is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum DescriptorKind {
    /// The gateway's socket.
    Listener,
    /// The memory in which the events that run are recorded.
    InFlight,
    /// The lock of the data folder, held for as long as the server runs.
    Lock,
}

/// What a server process says once it serves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Ready {
    /// The URL of its gateway, if it is one.
    pub(crate) gateway: Option<String>,
    /// The URL of NATS.
    pub(crate) nats: String,
}

/// A message as it is sent.
pub(super) fn line(message: &impl Serialize) -> anyhow::Result<Vec<u8>> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    if line.len() > MAX_MESSAGE_BYTES {
        bail!("a message to or from the server process has {} bytes", line.len());
    }
    Ok(line)
}

/// A message as it was sent.
pub(super) fn parse<T: DeserializeOwned>(line: &str) -> anyhow::Result<T> {
    serde_json::from_str(line).with_context(|| format!("`{}` is no message that is known", line.trim_end()))
}

/// Sends an assignment and its descriptors.
pub(super) fn send(
    socket: &UnixStream,
    broker: Option<&LocalBroker>,
    descriptors: &[(DescriptorKind, BorrowedFd<'_>)],
) -> anyhow::Result<()> {
    let kinds = descriptors.iter().map(|(kind, _)| *kind).collect();
    let line = line(&Assignment { broker: broker.cloned(), descriptors: kinds })?;
    let handed: Vec<_> = descriptors.iter().map(|(_, descriptor)| *descriptor).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !ancillary.push(SendAncillaryMessage::ScmRights(&handed)) {
        bail!("{} descriptors are more than an assignment may hold", handed.len());
    }
    let sent = sendmsg(socket, &[IoSlice::new(&line)], &mut ancillary, SendFlags::NOSIGNAL)?;
    if sent < line.len() {
        bail!("the assignment was not sent whole");
    }
    Ok(())
}

/// What a server process received at its start.
pub(super) struct Received {
    pub(super) assignment: Assignment,
    pub(super) descriptors: Vec<(DescriptorKind, OwnedFd)>,
    /// For what comes later.
    pub(super) socket: UnixStream,
}

/// Receives an assignment on this process's standard input, which goes on as the socket for orders.
pub(super) fn receive() -> anyhow::Result<Received> {
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
        bail!("{} descriptors came, and {} were announced", descriptors.len(), assignment.descriptors.len());
    }
    let descriptors = assignment.descriptors.iter().copied().zip(descriptors).collect();
    Ok(Received { assignment, descriptors, socket })
}
