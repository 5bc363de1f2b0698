//! A connection in the daemon's status, for tests.

use kubevpn_daemon::api::{ConnectionInfo, ConnectionState, ListenerInfo, TrafficInfo};

pub(crate) fn listener(protocol: &str, address: &str, listening: bool) -> ListenerInfo {
    ListenerInfo {
        protocol: protocol.into(),
        address: address.into(),
        listening,
        reason: String::new(),
        egress: false,
        auth: false,
        open_clients: 0,
    }
}

/// A healthy connection without listeners.
pub(crate) fn connection(id: &str) -> ConnectionInfo {
    ConnectionInfo {
        id: id.into(),
        cluster: "lab".into(),
        kubeconfig: "/home/jane/.kube/config".into(),
        namespace: "shop".into(),
        status: "connected".into(),
        socks_listen_addr: String::new(),
        socks_egress: false,
        context: "lab".into(),
        server: "https://10.0.0.1:6443".into(),
        state: ConnectionState::Connected,
        reason: String::new(),
        login: String::new(),
        selection: None,
        since: "2026-01-02T03:04:05Z".into(),
        started_at: "2026-01-02T03:04:05Z".into(),
        listeners: Vec::new(),
        traffic: TrafficInfo::default(),
        sessions: 0,
        streams: 0,
        last_refusals: Vec::new(),
    }
}
