//! What the options of tcp and ipc have in common: the backlog, and the kernel's buffers.

use std::io;

use socket2::SockRef;

use super::invalid;

/// Refuses what the system would not take, or would take for something else.
pub(super) fn check(scheme: &str, backlog: u32, buffers: [Option<usize>; 2]) -> io::Result<()> {
    if backlog == 0 || backlog > i32::MAX as u32 {
        return Err(invalid(format!("{scheme} backlog must be at least 1")));
    }
    if buffers.into_iter().flatten().any(|size| !(1..=i32::MAX as usize).contains(&size)) {
        return Err(invalid(format!("{scheme} buffer sizes must be from 1 byte to 2 GiB - 1")));
    }
    Ok(())
}

/// Sets the buffers that are asked for.
pub(super) fn set_buffers(socket: &SockRef<'_>, send: Option<usize>, recv: Option<usize>) -> io::Result<()> {
    if let Some(bytes) = send {
        socket.set_send_buffer_size(bytes)?;
    }
    if let Some(bytes) = recv {
        socket.set_recv_buffer_size(bytes)?;
    }
    Ok(())
}
