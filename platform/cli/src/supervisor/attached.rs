//! The server process's end of the link to its supervisor.

use super::link::{self, DescriptorKind, Ready, Received};
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

/// What a supervisor gave to this process.
#[derive(Debug)]
pub(crate) struct Attached {
    /// The nats-server to use, where the supervisor started it.
    pub(crate) broker: Option<LocalBroker>,
    /// What the server goes on with.
    pub(crate) inherited: Inherited,
    /// The way back to the supervisor.
    pub(crate) reports: Reports,
    /// What the supervisor wants done.
    pub(crate) orders: Orders,
    /// Held for as long as this process serves.
    pub(crate) lock: Option<OwnedFd>,
}

impl Attached {
    /// Takes what the supervisor sends first.
    pub(crate) fn receive() -> anyhow::Result<Self> {
        let received = link::receive().map_err(|error| {
            let next = "`--supervised` is what `nerve` starts its server process with: leave it out";
            Failure::new("this process has no supervisor").because(error).next(next)
        });
        let Received { assignment, descriptors, socket } = received?;
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
    /// Says that the server serves.
    pub(crate) async fn ready(&mut self, ready: &Ready) -> anyhow::Result<()> {
        self.0.write_all(&link::line(ready)?).await.context("the supervisor cannot be told that the server is ready")
    }
}

/// Orders of the supervisor.
#[derive(Debug)]
pub(crate) struct Orders(Lines<BufReader<OwnedReadHalf>>);

impl Orders {
    /// Cancels `stop` when the supervisor or a signal asks for that, and returns once the supervisor is gone.
    ///
    /// A service manager may signal both processes, and the supervisor orders what it was asked for: so to be asked twice means
    /// nothing here. The supervisor kills this process where it is to end at once.
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
