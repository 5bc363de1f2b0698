//! Services: defaults, and the addresses they get.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde_json::{Value, json};

use super::{World, items, name_of, namespace_of, text};
use crate::kind::{self, SERVICE};
use crate::status::Status;
use crate::store::Object;

/// Where ClusterIPs come from.
pub(crate) const IPV4_SERVICES: &str = "10.96.0.0/16";
pub(crate) const IPV6_SERVICES: &str = "fd00:96::/112";

impl World {
    /// Fills in what an API server fills in, and keeps the addresses the Service has.
    pub(super) fn admit_service(
        &mut self,
        object: &mut Value,
        old: Option<&Object>,
    ) -> Result<(), Status> {
        let name = name_of(object);
        let invalid = |field: &str, why: &str| Err(Status::invalid(&SERVICE, &name, field, why));
        if !object["spec"].is_object() {
            return invalid("spec", "Required value");
        }
        let spec = &mut object["spec"];
        default(spec, "type", || json!("ClusterIP"));
        default(spec, "sessionAffinity", || json!("None"));
        if !spec["ports"].is_null() {
            for port in spec["ports"].as_array_mut().into_iter().flatten() {
                let number = port["port"].as_u64().unwrap_or_default();
                if !(1..=65535).contains(&number) {
                    return invalid(
                        "spec.ports[0].port",
                        "must be between 1 and 65535, inclusive",
                    );
                }
                default(port, "protocol", || json!("TCP"));
                default(port, "targetPort", || json!(number));
            }
        }
        let external = spec["type"] == "ExternalName";
        let headless = spec["clusterIP"] == "None";
        if items(&spec["ports"]).is_empty() && !external && !headless {
            return invalid("spec.ports", "Required value");
        }
        if !external {
            default(spec, "internalTrafficPolicy", || json!("Cluster"));
            let old = old
                .map(|o| &o["spec"])
                .filter(|s| s["type"] != "ExternalName");
            self.give_addresses(object, old);
        }
        if object["status"]["loadBalancer"].is_null() {
            object["status"] = json!({"loadBalancer": {}});
        }
        Ok(())
    }

    fn give_addresses(&mut self, object: &mut Value, old: Option<&Value>) {
        let spec = &mut object["spec"];
        if let Some(old) = old {
            for field in ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
                default(spec, field, || old[field].clone());
            }
        }
        default(spec, "ipFamilyPolicy", || json!("SingleStack"));
        let given = text(&spec["clusterIP"]);
        let first = if given.contains(':') { "IPv6" } else { "IPv4" };
        default(spec, "ipFamilies", || json!([first]));
        let dual = spec["ipFamilyPolicy"] != "SingleStack";
        if let Some(families) = spec["ipFamilies"].as_array_mut()
            && families.len() == 1
            && dual
        {
            let other = if families[0] == "IPv4" {
                "IPv6"
            } else {
                "IPv4"
            };
            families.push(other.into());
        }
        if given == "None" {
            spec["clusterIPs"] = json!(["None"]);
            return;
        }
        let families = spec["ipFamilies"].clone();
        let mut addresses: Vec<Value> = items(&spec["clusterIPs"]).to_vec();
        if addresses.is_empty() && !given.is_empty() {
            addresses.push(given.into());
        }
        for family in items(&families).iter().skip(addresses.len()) {
            addresses.push(self.free_address(family == "IPv6").to_string().into());
        }
        let spec = &mut object["spec"];
        spec["clusterIP"] = addresses.first().cloned().unwrap_or_default();
        spec["clusterIPs"] = addresses.into();
    }

    /// An address no Service has, outside of the first 256, which are kept for those who ask by number.
    fn free_address(&mut self, v6: bool) -> IpAddr {
        loop {
            let [.., high, low] = (256 + self.names.number() % (65_535 - 256)).to_be_bytes();
            let address = if v6 {
                let host = u16::from_be_bytes([high, low]);
                IpAddr::V6(Ipv6Addr::new(0xfd00, 0x96, 0, 0, 0, 0, 0, host))
            } else {
                IpAddr::V4(Ipv4Addr::new(10, 96, high, low))
            };
            let taken = self.store.get(&kind::IP_ADDRESS, "", &address.to_string());
            if taken.is_none() {
                return address;
            }
        }
    }

    /// IPAddress objects for the addresses in use, and none for others; then the endpoints.
    pub(super) fn reconcile_services(&mut self) {
        let services: Vec<Object> = self.store.list(&SERVICE, "").cloned().collect();
        let mut used = Vec::new();
        for service in &services {
            for address in items(&service["spec"]["clusterIPs"]) {
                if let Ok(ip) = text(address).parse::<IpAddr>() {
                    self.record_address(ip, service);
                    used.push(ip.to_string());
                }
            }
        }
        let stale: Vec<String> = self
            .store
            .list(&kind::IP_ADDRESS, "")
            .map(|o| name_of(o))
            .filter(|name| !used.contains(name))
            .collect();
        for name in stale {
            self.store.remove(&kind::IP_ADDRESS, "", &name);
        }
        self.reconcile_endpoints(&services);
    }

    fn record_address(&mut self, ip: IpAddr, service: &Value) {
        let name = ip.to_string();
        if self.store.get(&kind::IP_ADDRESS, "", &name).is_some() {
            return;
        }
        let family = if ip.is_ipv6() { "IPv6" } else { "IPv4" };
        self.make(
            &kind::IP_ADDRESS,
            json!({
                "metadata": {"name": name, "labels": {
                    "ipaddress.kubernetes.io/ip-family": family,
                    "ipaddress.kubernetes.io/managed-by": "ipallocator.k8s.io"}},
                "spec": {"parentRef": {"resource": "services",
                    "namespace": namespace_of(service), "name": name_of(service)}},
            }),
        );
    }
}

pub(super) fn default(object: &mut Value, field: &str, value: impl FnOnce() -> Value) {
    if object[field].is_null() {
        let value = value();
        if !value.is_null() {
            object[field] = value;
        }
    }
}
