//! What the built-in transports ask of the system and no safe crate here gives: the addresses of a network
//! interface, its index, who is at the other end of a Unix socket, and a lock on a file.
//!
//! Owns: the only `unsafe` of the transports, each block with its reason. Never: keeps what the system
//! lent beyond the call, and never blocks.
#![cfg_attr(not(unix), expect(dead_code, reason = "without them the transports that ask do not exist"))]
#![cfg_attr(unix, expect(unsafe_code, reason = "system calls that nobody wraps; each says why it is sound"))]

use std::net::{IpAddr, SocketAddr};

/// Whether a read that gave less than was asked for has emptied a socket, so that the next edge may be awaited
/// without another read. So with epoll (epoll(7), "Do I need to continuously read/write"); other systems want to
/// see the `WouldBlock`.
pub(super) const SHORT_IS_EMPTY: bool = cfg!(any(target_os = "linux", target_os = "android"));

/// Addresses of the network interface `name`, each with port 0: IPv4 first, then IPv6, link-local ones last
/// and with their scope. Empty when there is no such interface or it has no address.
#[cfg(unix)]
pub(super) fn interface_addresses(name: &str) -> Vec<SocketAddr> {
    let mut found = Vec::new();
    let mut list: *mut libc::ifaddrs = std::ptr::null_mut();
    // SAFETY: `list` is a valid place for the pointer that the call writes; on failure it is not used.
    if unsafe { libc::getifaddrs(&mut list) } != 0 {
        return found;
    }
    let mut next = list;
    // SAFETY: the list is null-terminated and lives until `freeifaddrs` below; nothing else has it.
    while let Some(entry) = unsafe { next.as_ref() } {
        next = entry.ifa_next;
        // SAFETY: `ifa_name` is a C string that lives as long as the list.
        let ours = unsafe { std::ffi::CStr::from_ptr(entry.ifa_name) };
        if ours.to_bytes() == name.as_bytes() {
            // SAFETY: `ifa_addr` is null or points to a socket address of the family that it names.
            found.extend(unsafe { socket_address(entry.ifa_addr) });
        }
    }
    // SAFETY: from `getifaddrs`, freed once; `found` holds copies only.
    unsafe { libc::freeifaddrs(list) };
    found.sort_by_key(|address| match address.ip() {
        IpAddr::V4(_) => 0,
        IpAddr::V6(ip) if ip.is_unicast_link_local() => 2,
        IpAddr::V6(_) => 1,
    });
    found
}

/// # Safety
/// `address` is null or points to a socket address that is complete for the family it names.
#[cfg(unix)]
unsafe fn socket_address(address: *const libc::sockaddr) -> Option<SocketAddr> {
    use std::net::{Ipv4Addr, Ipv6Addr, SocketAddrV6};
    // SAFETY: null or valid, as the caller promises.
    let family = unsafe { address.as_ref() }?.sa_family;
    match i32::from(family) {
        libc::AF_INET => {
            // SAFETY: complete for its family, as the caller promises; read unaligned, so that alignment of
            // the list's memory does not matter.
            let v4 = unsafe { address.cast::<libc::sockaddr_in>().read_unaligned() };
            Some(SocketAddr::from((Ipv4Addr::from(u32::from_be(v4.sin_addr.s_addr)), 0)))
        }
        libc::AF_INET6 => {
            // SAFETY: as above.
            let v6 = unsafe { address.cast::<libc::sockaddr_in6>().read_unaligned() };
            let ip = Ipv6Addr::from(v6.sin6_addr.s6_addr);
            Some(SocketAddrV6::new(ip, 0, 0, v6.sin6_scope_id).into())
        }
        _ => None,
    }
}

/// Nothing is known of interfaces here.
#[cfg(not(unix))]
pub(super) fn interface_addresses(_name: &str) -> Vec<SocketAddr> {
    let _: Option<IpAddr> = None;
    Vec::new()
}

/// The index of the network interface `name`: an IPv6 scope.
#[cfg(unix)]
pub(super) fn interface_index(name: &str) -> Option<u32> {
    let name = std::ffi::CString::new(name).ok()?;
    // SAFETY: `name` is a C string that outlives the call.
    let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
    (index != 0).then_some(index)
}

/// Nothing is known of interfaces here.
#[cfg(not(unix))]
pub(super) fn interface_index(_name: &str) -> Option<u32> {
    None
}

/// Who is at the other end of a Unix socket: of a listener the process that called `listen`.
#[cfg(any(target_os = "android", target_os = "linux"))]
pub(super) fn peer_credentials(socket: impl std::os::fd::AsFd) -> Option<super::Credentials> {
    use std::os::fd::AsRawFd;
    let mut peer = libc::ucred { pid: 0, uid: 0, gid: 0 };
    let mut size = std::mem::size_of::<libc::ucred>() as libc::socklen_t;
    // SAFETY: the descriptor is borrowed and so open; `peer` and `size` are valid for writing, and `size` is
    // the size of `peer`, beyond which the kernel does not write.
    let result = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            (&raw mut peer).cast(),
            &mut size,
        )
    };
    // A process that this one cannot see (another pid namespace) has the number 0.
    let pid = u32::try_from(peer.pid).ok().filter(|pid| *pid != 0);
    let whole = result == 0 && size as usize == std::mem::size_of::<libc::ucred>();
    whole.then_some(super::Credentials { pid, uid: peer.uid, gid: peer.gid })
}

/// Who is at the other end of a Unix socket.
#[cfg(any(
    target_vendor = "apple",
    target_os = "dragonfly",
    target_os = "freebsd",
    target_os = "netbsd",
    target_os = "openbsd"
))]
pub(super) fn peer_credentials(socket: impl std::os::fd::AsFd) -> Option<super::Credentials> {
    use std::os::fd::AsRawFd;
    let (mut uid, mut gid) = (0, 0);
    // SAFETY: the descriptor is borrowed and so open; both places are valid for writing.
    let result = unsafe { libc::getpeereid(socket.as_fd().as_raw_fd(), &mut uid, &mut gid) };
    (result == 0).then_some(super::Credentials { pid: None, uid, gid })
}

/// Not known how to ask here.
#[cfg(all(
    unix,
    not(any(
        target_vendor = "apple",
        target_os = "android",
        target_os = "dragonfly",
        target_os = "freebsd",
        target_os = "linux",
        target_os = "netbsd",
        target_os = "openbsd"
    ))
))]
pub(super) fn peer_credentials(_socket: impl std::os::fd::AsFd) -> Option<super::Credentials> {
    None
}

/// An event tells of readability when so many bytes are there, or no more will come (`SO_RCVLOWAT`). Left out where the
/// system would not make room for so many (Linux does so since 4.18, unless the buffer's size was set by hand): it might
/// then wait for ever.
#[cfg(any(target_os = "android", target_os = "linux"))]
pub(super) fn set_low_water(socket: impl std::os::fd::AsFd, bytes: usize) {
    use std::os::fd::AsRawFd;
    let set = |bytes: libc::c_int| {
        let size = std::mem::size_of::<libc::c_int>() as libc::socklen_t;
        // SAFETY: the descriptor is borrowed and so open; the kernel reads `size` bytes of `bytes`, which is as long.
        let result = unsafe {
            libc::setsockopt(
                socket.as_fd().as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_RCVLOWAT,
                (&raw const bytes).cast(),
                size,
            )
        };
        result == 0
    };
    let room = || socket2::SockRef::from(&socket).recv_buffer_size().unwrap_or(0);
    let wanted = libc::c_int::try_from(bytes).unwrap_or(libc::c_int::MAX);
    if set(wanted) && bytes > 1 && room() <= bytes {
        set(1);
    }
}

/// Other systems are not known to make room for so many bytes.
#[cfg(not(any(target_os = "android", target_os = "linux")))]
pub(super) fn set_low_water<T>(_socket: T, _bytes: usize) {}

/// Takes the whole-file lock of `file`, without waiting; it goes when the file is closed.
///
/// # Errors
/// `WouldBlock`: another has it.
#[cfg(unix)]
pub(super) fn try_lock(file: &std::fs::File) -> std::io::Result<()> {
    use std::os::fd::AsRawFd;
    // SAFETY: the descriptor is borrowed and so open; the call touches no memory.
    match unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) } {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    }
}
