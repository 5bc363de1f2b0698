//! The interface, its addresses and its routes: `ip link set lo up; ip address add …; ip route add local default dev lo`.

use std::io;
use std::net::IpAddr;

use netlink_sys::protocols::NETLINK_ROUTE;

use crate::netlink::{ACK, CREATE, REQUEST, attribute, message, talk};
use crate::{ADDRESS_V4, ADDRESS_V6};

/// The first interface of every network (`LOOPBACK_IFINDEX`).
const LOOPBACK: i32 = 1;

const NEW_LINK: u16 = 16;
const NEW_ADDRESS: u16 = 20;
const NEW_ROUTE: u16 = 24;

const UP: u32 = 1;

const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

/// No duplicate address detection: no other machine can have the address.
const NO_DAD: u8 = 2;

const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const RTA_OIF: u16 = 4;
const RTA_PREFSRC: u16 = 7;

const TABLE_LOCAL: u8 = 255;
const PROTOCOL_STATIC: u8 = 4;
const SCOPE_HOST: u8 = 254;
const SCOPE_UNIVERSE: u8 = 0;
const TYPE_LOCAL: u8 = 2;

/// Makes every address local. Returns whether IPv6 addresses are too, which a system may not support.
///
/// The interface also gets an address, which is the source of every connection: without one, programs that inspect their
/// interfaces assume that there is no network (`AI_ADDRCONFIG`).
pub(crate) fn set_up() -> io::Result<bool> {
    let link = [
        &[0; 4][..],
        &LOOPBACK.to_ne_bytes(),
        &UP.to_ne_bytes(),
        &UP.to_ne_bytes(),
    ]
    .concat();
    tell(NEW_LINK, 0, &link)?;
    local(ADDRESS_V4.into())?;
    match local(ADDRESS_V6.into()) {
        Ok(()) => Ok(true),
        Err(error) => {
            tracing::debug!(%error, "there is no IPv6");
            Ok(false)
        }
    }
}

/// Makes the addresses of one family local.
fn local(own: IpAddr) -> io::Result<()> {
    let (family, bytes, scope, flags) = match own {
        IpAddr::V4(ip) => (AF_INET, ip.octets().to_vec(), SCOPE_HOST, 0),
        IpAddr::V6(ip) => (AF_INET6, ip.octets().to_vec(), SCOPE_UNIVERSE, NO_DAD),
    };
    let bits = u8::try_from(8 * bytes.len()).unwrap_or(u8::MAX);
    let address = [
        &[family, bits, flags, 0][..],
        &LOOPBACK.to_ne_bytes(),
        &attribute(IFA_LOCAL, &bytes),
        &attribute(IFA_ADDRESS, &bytes),
    ]
    .concat();
    tell(NEW_ADDRESS, CREATE, &address)?;
    let header = [
        family,
        0,
        0,
        0,
        TABLE_LOCAL,
        PROTOCOL_STATIC,
        scope,
        TYPE_LOCAL,
    ];
    let route = [
        &header[..],
        &[0; 4],
        &attribute(RTA_OIF, &LOOPBACK.to_ne_bytes()),
        &attribute(RTA_PREFSRC, &bytes),
    ]
    .concat();
    tell(NEW_ROUTE, CREATE, &route)
}

fn tell(kind: u16, flags: u16, body: &[u8]) -> io::Result<()> {
    let message = message(kind, REQUEST | ACK | flags, 1, body);
    talk(NETLINK_ROUTE, &message, 1)
}
