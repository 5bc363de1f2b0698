//! Made-up addresses for names that have none.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use kubevpn_target::Name;
use tokio::time::Instant;

/// Limit on names with an address.
const NAMES: usize = 8192;

/// A name that was looked up or connected to within this time keeps its address: programs use addresses for longer than the
/// TTL of the answer.
const KEEP: Duration = Duration::from_secs(600);

/// 198.18.1.0 to 198.19.254.255. The first and the last 256 addresses are left to the network's creator.
const FIRST: u32 = 0xc612_0100;
const LAST: u32 = 0xc613_feff;

/// Prefix of the IPv6 address before the IPv4 one, in the range of
/// [`Host::is_fake_ip`](kubevpn_target::Host::is_fake_ip).
const PREFIX: u16 = 0xfc00;

/// The addresses of one name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Addresses {
    /// In 198.18.0.0/15.
    pub v4: Ipv4Addr,
    /// `fc00::` with the IPv4 address at its end.
    pub v6: Ipv6Addr,
}

/// A table of names and their assigned addresses. Clones are the same table.
///
/// A name keeps its address while it is in use, and normally for the life of the table. Only if 8192 names have one is the
/// least recently used name dropped, if it was unused for at least 10 minutes. Its address is reassigned as late as
/// possible.
#[derive(Clone, Debug, Default)]
pub struct NameTable(Arc<Mutex<Table>>);

#[derive(Debug)]
struct Table {
    by_name: HashMap<Name, AddressEntry>,
    by_address: HashMap<u32, Name>,
    /// Where the search for a free address begins.
    next: u32,
}

#[derive(Debug)]
struct AddressEntry {
    address: u32,
    used: Instant,
}

impl Default for Table {
    fn default() -> Self {
        Self {
            by_name: HashMap::new(),
            by_address: HashMap::new(),
            next: FIRST,
        }
    }
}

impl NameTable {
    /// The addresses of a name: existing or new ones. `None` if the limit of names is in use. A name with a trailing dot is a
    /// different one.
    pub fn assign(&self, name: &Name) -> Option<Addresses> {
        let now = Instant::now();
        let mut table = self.table();
        let address = match table.by_name.get_mut(name) {
            Some(entry) => {
                entry.used = now;
                entry.address
            }
            None => table.add(name, now)?,
        };
        Some(Addresses::of(address))
    }

    /// The name to which an address was assigned.
    pub fn find(&self, ip: IpAddr) -> Option<Name> {
        let address = assigned(ip)?;
        let mut table = self.table();
        let name = table.by_address.get(&address)?.clone();
        if let Some(entry) = table.by_name.get_mut(&name) {
            entry.used = Instant::now();
        }
        Some(name)
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    fn add(&mut self, name: &Name, now: Instant) -> Option<u32> {
        if self.by_name.len() >= NAMES {
            let oldest = self.by_name.iter().min_by_key(|(_, entry)| entry.used);
            let (oldest, _) = oldest.filter(|(_, entry)| now >= entry.used + KEEP)?;
            let oldest = oldest.clone();
            let gone = self.by_name.remove(&oldest)?;
            self.by_address.remove(&gone.address);
        }
        // There are more addresses than names, so the search ends.
        let address = loop {
            let address = self.next;
            self.next = if address == LAST { FIRST } else { address + 1 };
            if !self.by_address.contains_key(&address) {
                break address;
            }
        };
        self.by_address.insert(address, name.clone());
        let entry = AddressEntry { address, used: now };
        self.by_name.insert(name.clone(), entry);
        Some(address)
    }
}

impl Addresses {
    fn of(address: u32) -> Self {
        let v4 = Ipv4Addr::from(address);
        let [a, b, c, d] = v4.octets();
        let (high, low) = (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
        Self {
            v4,
            v6: Ipv6Addr::new(PREFIX, 0, 0, 0, 0, 0, high, low),
        }
    }
}

/// Whether an address is in the range that is assigned to names.
///
/// ```
/// use kubevpn_transparent::is_assignable;
/// assert!(is_assignable("198.18.1.7".parse().unwrap()));
/// assert!(is_assignable("fc00::c612:107".parse().unwrap()));
/// assert!(!is_assignable("10.96.0.1".parse().unwrap()));
/// ```
pub fn is_assignable(ip: IpAddr) -> bool {
    assigned(ip).is_some()
}

fn assigned(ip: IpAddr) -> Option<u32> {
    let address = match ip.to_canonical() {
        IpAddr::V4(ip) => ip.to_bits(),
        IpAddr::V6(ip) => match ip.segments() {
            [PREFIX, 0, 0, 0, 0, 0, high, low] => u32::from(high) << 16 | u32::from(low),
            _ => return None,
        },
    };
    (FIRST..=LAST).contains(&address).then_some(address)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn name(text: &str) -> Name {
        Name::parse(text).unwrap()
    }

    fn numbered(i: usize) -> Name {
        name(&format!("x{i}.test"))
    }

    #[test]
    fn a_name_keeps_its_address() {
        let names = NameTable::default();
        let a = names.assign(&name("a.test")).unwrap();
        let b = names.assign(&name("b.test")).unwrap();
        assert_ne!(a, b);
        assert_eq!(names.assign(&name("A.test")), Some(a));
        for ip in [IpAddr::from(a.v4), a.v6.into()] {
            assert_eq!(names.clone().find(ip), Some(name("a.test")));
            assert!(is_assignable(ip), "{ip}");
        }
        for other in [
            "198.18.0.1",
            "198.18.99.99",
            "10.0.0.1",
            "fc00::1",
            "fc00::1:c612:100",
        ] {
            assert_eq!(names.find(other.parse().unwrap()), None, "{other}");
        }
    }

    /// The range is within that of `Host::is_fake_ip`.
    #[test]
    fn every_address_is_known_as_made_up() {
        for address in [FIRST, FIRST + 1, 0xc612_ffff, 0xc613_0000, LAST] {
            let Addresses { v4, v6 } = Addresses::of(address);
            for ip in [IpAddr::from(v4), v6.into()] {
                assert!(kubevpn_target::Host::from(ip).is_fake_ip(), "{ip}");
                assert_eq!(assigned(ip), Some(address), "{ip}");
            }
        }
        for address in [FIRST - 1, LAST + 1] {
            assert!(!is_assignable(Addresses::of(address).v4.into()));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_name_unused_for_longest_makes_room() {
        let names = NameTable::default();
        let first: Vec<_> = (0..NAMES)
            .map(|i| names.assign(&numbered(i)).unwrap())
            .collect();
        let distinct: HashSet<_> = first.iter().map(|a| a.v4).collect();
        assert_eq!(distinct.len(), NAMES);
        assert_eq!(names.assign(&numbered(NAMES)), None, "all are in use");
        tokio::time::advance(KEEP / 2).await;
        // Used by a lookup, and by a connection.
        assert_eq!(names.assign(&numbered(0)), Some(first[0]));
        assert_eq!(names.find(first[1].v6.into()), Some(numbered(1)));
        tokio::time::advance(KEEP / 2).await;
        let new = names.assign(&numbered(NAMES)).unwrap();
        assert!(
            !first.contains(&new),
            "its address is not given away at once"
        );
        assert_eq!(names.find(first[0].v4.into()), Some(numbered(0)));
        assert_eq!(names.find(first[1].v4.into()), Some(numbered(1)));
        let gone = first.iter().filter(|a| names.find(a.v4.into()).is_none());
        assert_eq!(gone.count(), 1);
        let table = names.table();
        assert_eq!(
            (table.by_name.len(), table.by_address.len()),
            (NAMES, NAMES)
        );
    }

    #[test]
    fn addresses_come_round() {
        let names = NameTable::default();
        names.table().next = LAST;
        let last = names.assign(&name("a.test")).unwrap();
        assert_eq!(last.v4.to_string(), "198.19.254.255");
        let first = names.assign(&name("b.test")).unwrap();
        assert_eq!(first.v4.to_string(), "198.18.1.0");
        names.table().next = LAST;
        let next = names.assign(&name("c.test")).unwrap();
        assert_eq!(next.v4.to_string(), "198.18.1.1");
    }
}
