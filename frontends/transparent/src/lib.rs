//! A frontend for programs without proxy support: a rule of the kernel redirects their connections here, and they are
//! relayed to their original destination.
//!
//! It makes no rules and no namespaces, and does not listen or dial: the caller redirects connections to a listener and
//! passes them in. Redirects of netfilter (`redirect`, `dnat`) are supported, through `SO_ORIGINAL_DST`; TPROXY is not.
//!
//! The path of a connection: [`serve_connection`] (`serve.rs`) reads the original destination from the client's socket and
//! makes it a [`Target`](kubevpn_target::Target). If [`NameTable`] (`names.rs`) assigned the address to a name, the target is
//! that name, so that logs and refusals contain it. The rest is a [`Tunnel`](kubevpn_conn::Tunnel). There is no protocol
//! for a refusal: the client is connected already, and is reset.
//!
//! ```
//! use kubevpn_target::Name;
//! use kubevpn_transparent::NameTable;
//!
//! // The addresses that a DNS server answers with, for a name that has none.
//! let names = NameTable::default();
//! let name = Name::parse("db-0.db.shop.svc")?;
//! let addresses = names.assign(&name).unwrap();
//! assert_eq!(addresses.v4.to_string(), "198.18.1.0");
//! assert_eq!(addresses.v6.to_string(), "fc00::c612:100");
//! // Where a connection to that address leads.
//! assert_eq!(names.find(addresses.v4.into()), Some(name));
//! # Ok::<(), kubevpn_target::TargetError>(())
//! ```
//!
//! Specified in RFC 2544 and RFC 6890 (198.18.0.0/15 is for use within one site), RFC 4193 (fc00::/8 is not defined);
//! `SO_ORIGINAL_DST` is defined in the kernel's `include/uapi/linux/netfilter_ipv4.h`.

#![warn(missing_docs)]

mod names;
mod serve;

pub use self::names::{Addresses, NameTable, is_assignable};
pub use self::serve::{ServeError, Settings, serve_connection};
