//! The conversation between the process outside and its helper: packets with file descriptors, over a pair of sockets.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};
use serde::{Deserialize, Serialize};

use crate::error::SetupStep;

/// Time limit of a step of the other side. A namespace is made in milliseconds.
const PATIENCE: Duration = Duration::from_secs(20);

/// The longest packet: a `resolv.conf` and little else.
const LONGEST: usize = 16 * 1024;

/// The most descriptors in one packet.
const DESCRIPTORS: usize = 8;

/// Messages of the helper.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum FromHelper {
    /// The namespaces exist, and no user is mapped yet.
    Unshared,
    /// The setup is complete. The sockets come with it: this many listeners, then those for datagrams, then the one for
    /// queries about sockets.
    Ready { listeners: usize },
    /// A step failed, possibly on a file.
    Failed {
        step: SetupStep,
        on: String,
        error: i32,
    },
    /// The command cannot be run.
    NotRun { error: i32 },
}

/// Messages to the helper.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum ToHelper {
    /// The users are mapped: set up the namespaces. The command's standard input comes with it.
    SetUp {
        /// The contents of `/etc/resolv.conf`.
        resolv_conf: String,
        /// Settings of the allocator for the command, which differ from the helper's.
        malloc_conf: Option<String>,
    },
    /// Become the command.
    Start,
}

/// One end of the conversation.
#[derive(Debug)]
pub(crate) struct ControlSocket(OwnedFd);

impl ControlSocket {
    /// Both ends of a conversation.
    pub(crate) fn pair() -> io::Result<(Self, OwnedFd)> {
        let kind = SocketType::SEQPACKET;
        let (ours, theirs) = socketpair(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None)?;
        Ok((Self::of(ours)?, theirs))
    }

    /// The end of this descriptor, without a time limit: for a side that waits while the other lives.
    pub(crate) fn patient(socket: OwnedFd) -> Self {
        Self(socket)
    }

    /// The end of this descriptor.
    pub(crate) fn of(socket: OwnedFd) -> io::Result<Self> {
        set_socket_timeout(&socket, Timeout::Recv, Some(PATIENCE))?;
        Ok(Self(socket))
    }

    pub(crate) fn send(
        &self,
        message: &impl Serialize,
        descriptors: &[BorrowedFd<'_>],
    ) -> io::Result<()> {
        let bytes = serde_json::to_vec(message)?;
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let flags = SendFlags::NOSIGNAL;
        sendmsg(&self.0, &[IoSlice::new(&bytes)], &mut control, flags)?;
        Ok(())
    }

    /// The next message; `None` when the other end is closed.
    pub(crate) fn receive<T: for<'de> Deserialize<'de>>(
        &self,
    ) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
        let mut bytes = vec![0; LONGEST];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut slices = [IoSliceMut::new(&mut bytes)];
        let flags = RecvFlags::CMSG_CLOEXEC;
        let received = loop {
            match recvmsg(&self.0, &mut slices, &mut control, flags) {
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::AGAIN) => return Err(io::ErrorKind::TimedOut.into()),
                // An end that was closed with an unread packet reports this.
                Err(rustix::io::Errno::CONNRESET) => return Ok(None),
                received => break received?,
            }
        };
        if received.bytes == 0 {
            return Ok(None);
        }
        let mut descriptors = Vec::new();
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(received) = message {
                descriptors.extend(received);
            }
        }
        let bytes = bytes.get(..received.bytes).unwrap_or_default();
        Ok(Some((serde_json::from_slice(bytes)?, descriptors)))
    }
}

impl AsFd for ControlSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};

    use super::*;

    #[test]
    fn messages_with_descriptors() {
        let (ours, theirs) = ControlSocket::pair().unwrap();
        let theirs = ControlSocket::of(theirs).unwrap();
        let (mut reader, mut writer) = io::pipe().unwrap();
        theirs
            .send(&FromHelper::Ready { listeners: 1 }, &[reader.as_fd()])
            .unwrap();
        let (message, mut descriptors) = ours.receive::<FromHelper>().unwrap().unwrap();
        assert!(matches!(message, FromHelper::Ready { listeners: 1 }));
        let mut received = std::fs::File::from(descriptors.pop().unwrap());
        assert!(descriptors.is_empty());
        writer.write_all(b"x").unwrap();
        let mut byte = [0];
        received.read_exact(&mut byte).unwrap();
        assert_eq!(&byte, b"x");
        writer.write_all(b"y").unwrap();
        reader.read_exact(&mut byte).unwrap();
        ours.send(&ToHelper::Start, &[]).unwrap();
        let (message, none) = theirs.receive::<ToHelper>().unwrap().unwrap();
        assert!(matches!(message, ToHelper::Start) && none.is_empty());
        drop(theirs);
        assert!(ours.receive::<FromHelper>().unwrap().is_none());
    }
}
