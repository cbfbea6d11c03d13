//! The server process's end of the link to its supervisor.

use super::link::{self, DescriptorKind, Ready, ReceivedAssignment};
use crate::server::Inherited;
use crate::{broker::LocalBroker, failure::Failure, signals::Signals};
use anyhow::Context;
use nerve_worker::InFlight;
use std::{fs::File, net::TcpListener, os::fd::OwnedFd};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines},
    net::{
        UnixStream,
        unix::{OwnedReadHalf, OwnedWriteHalf},
    },
};
use tokio_util::sync::CancellationToken;

/// The link to the supervisor and the resources that it passed to this process.
#[derive(Debug)]
pub(crate) struct SupervisorLink {
    /// The nats-server, if the supervisor started it.
    pub(crate) broker: Option<LocalBroker>,
    /// Resources that the server inherits.
    pub(crate) inherited: Inherited,
    /// Reports to the supervisor.
    pub(crate) reports: Reports,
    /// Orders of the supervisor.
    pub(crate) orders: Orders,
    /// The lock of the data directory, held while this process serves.
    pub(crate) lock: Option<OwnedFd>,
}

impl SupervisorLink {
    /// Receives the assignment of the supervisor.
    pub(crate) fn receive() -> anyhow::Result<Self> {
        let received = link::receive().map_err(|error| {
            let next = "`--supervised` is internal: omit it";
            Failure::new("this process has no supervisor").because(error).next(next)
        });
        let ReceivedAssignment { assignment, descriptors, socket } = received?;
        let (mut inherited, mut lock) = (Inherited::default(), None);
        for (kind, descriptor) in descriptors {
            match kind {
                DescriptorKind::Listener => {
                    let listener = TcpListener::from(descriptor);
                    listener.set_nonblocking(true)?;
                    inherited.listener = Some(listener);
                }
                DescriptorKind::InFlight => inherited.in_flight = Some(InFlight::in_file(&File::from(descriptor))?),
                DescriptorKind::Lock => lock = Some(descriptor),
            }
        }
        socket.set_nonblocking(true)?;
        let (orders, reports) = UnixStream::from_std(socket)?.into_split();
        let (orders, reports) = (Orders(BufReader::new(orders).lines()), Reports(reports));
        Ok(Self { broker: assignment.broker, inherited, reports, orders, lock })
    }
}

/// Reports to the supervisor.
#[derive(Debug)]
pub(crate) struct Reports(OwnedWriteHalf);

impl Reports {
    /// Reports that the server is ready.
    pub(crate) async fn ready(&mut self, ready: &Ready) -> anyhow::Result<()> {
        self.0.write_all(&link::line(ready)?).await.context("cannot report to the supervisor")
    }
}

/// Orders of the supervisor.
#[derive(Debug)]
pub(crate) struct Orders(Lines<BufReader<OwnedReadHalf>>);

impl Orders {
    /// Cancels `stop` on an order of the supervisor or a signal. Returns when the supervisor has exited.
    ///
    /// A service manager may signal both processes, and the supervisor forwards its signal as an order, so a second
    /// request has no meaning here. The supervisor kills this process for an immediate stop.
    pub(crate) async fn follow(mut self, mut signals: Signals, stop: &CancellationToken) {
        loop {
            tokio::select! {
                order = self.0.next_line() => match order {
                    Ok(Some(_)) => stop.cancel(),
                    Ok(None) | Err(_) => return,
                },
                () = signals.next() => stop.cancel(),
            }
        }
    }
}
