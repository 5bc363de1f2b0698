//! What `integration/fuzz` runs: plain functions over bytes, so that a test can replay a corpus.

use http::Uri;
use kubevpn_target::{Host, Origin, Target};

use crate::authority::{forward, host, host_value, tunnel};

/// Reads `data` as a request-target and as a `Host` field.
///
/// Panics when two readings of the same bytes differ: ours and that of the URI library hyper parses
/// with, ours of CONNECT and of forwarding, or that of the `Host` field made of a target.
pub fn http_authority(data: &[u8]) {
    if let Ok(text) = std::str::from_utf8(data) {
        let tunnel = tunnel(text, Origin::default());
        let host = host(text, Origin::default());
        if let Ok(target) = &tunnel {
            assert_eq!(host.as_ref(), Ok(target), "{text:?} as CONNECT and as Host");
        }
        if let Ok(target) = &host {
            stable(target);
        }
    }
    let Ok(uri) = Uri::try_from(data) else {
        return;
    };
    let Some(authority) = uri.authority() else {
        return;
    };
    let target = match uri.scheme_str() {
        Some(scheme) => forward(scheme, authority.as_str(), Origin::default()),
        None => tunnel(authority.as_str(), Origin::default()),
    };
    if let Ok(target) = target {
        stable(&target);
        let port = authority.port_u16().unwrap_or(80);
        assert_eq!(target.port.get(), port, "{uri}");
        assert_eq!(
            Host::parse(authority.host()).as_ref(),
            Ok(&target.host),
            "{uri}"
        );
    }
}

/// What we write of a target is read as the same target.
fn stable(target: &Target) {
    let origin = Origin::default();
    assert_eq!(tunnel(&target.to_string(), origin).as_ref(), Ok(target));
    assert_eq!(host(&host_value(target), origin).as_ref(), Ok(target));
}
