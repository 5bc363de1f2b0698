//! The forwards of a command: open while it runs, and passed to it by variables and arguments.

use std::ffi::OsString;
use std::net::SocketAddr;

use kubevpn_forward::Forward;
use kubevpn_proxy::{Bound, ForwardTo, ListenerSpec, Protocol};

use super::listen::{forward, is_port_alone};
use crate::exit::Failure;

/// The forwards, in the order of the flags.
#[derive(Default)]
pub(super) struct Forwards {
    /// Bound sockets; two for a forward on both address families.
    pub(super) bound: Vec<Bound>,
    addresses: Vec<SocketAddr>,
    /// Whether the port was chosen by the system.
    is_free: bool,
}

impl Forwards {
    pub(super) async fn bind(texts: &[String]) -> Result<Self, Failure> {
        let mut forwards = Self::default();
        for text in texts {
            let Forward { listen, to } = forward(text)?;
            let mut spec = ListenerSpec::new(Protocol::Forward(ForwardTo(to)), listen);
            spec.both_families = is_port_alone(text);
            let bound = spec.bind(&spec.address, false).await?;
            let Some(address) = bound.first().and_then(Bound::address) else {
                return Err(Failure::value(format!(
                    "--forward {text}: the command needs an IP address and a port"
                )));
            };
            forwards.is_free |= text.starts_with("0:") || text.contains(":0:");
            forwards.addresses.push(address);
            forwards.bound.extend(bound);
        }
        Ok(forwards)
    }

    /// Whether there are no forwards.
    pub(super) fn is_empty(&self) -> bool {
        self.addresses.is_empty()
    }

    /// `KUBEVPN_FORWARD_1` and so on: IP:PORT.
    pub(super) fn variables(&self) -> impl Iterator<Item = (String, String)> {
        let numbered = self.addresses.iter().zip(1..);
        numbered.map(|(address, n)| (format!("KUBEVPN_FORWARD_{n}"), address.to_string()))
    }

    /// The arguments, in which `{}` is replaced by the port of the first forward with a free port, and `{N}` by that of
    /// forward N.
    pub(super) fn in_words(&self, words: &[OsString]) -> Vec<OsString> {
        let with_ports = |word: &OsString| match word.to_str().filter(|_| self.is_free) {
            None => word.clone(),
            Some(text) => {
                let mut text = text.to_owned();
                for (address, n) in self.addresses.iter().zip(1..) {
                    let port = address.port().to_string();
                    if n == 1 {
                        text = text.replace("{}", &port);
                    }
                    text = text.replace(&format!("{{{n}}}"), &port);
                }
                text.into()
            }
        };
        words.iter().map(with_ports).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn forwards(texts: &[&str]) -> Forwards {
        let texts: Vec<_> = texts.iter().map(|text| (*text).to_owned()).collect();
        Forwards::bind(&texts).await.unwrap()
    }

    #[tokio::test]
    async fn commands_get_their_ports() {
        let two = forwards(&["127.0.0.1:0:db:5432", "127.0.0.1:0:svc/web:80"]).await;
        let [first, second] = [0, 1].map(|n| two.addresses[n].port());
        let variables: Vec<_> = two.variables().collect();
        assert_eq!(
            variables[1],
            ("KUBEVPN_FORWARD_2".into(), format!("127.0.0.1:{second}"))
        );
        let words = ["psql", "-p{}", "{1}-{2}"].map(OsString::from);
        let told = two.in_words(&words);
        let told: Vec<_> = told.iter().filter_map(|word| word.to_str()).collect();
        let wanted = format!("psql -p{first} {first}-{second}");
        assert_eq!(told.join(" "), wanted);
        // Without forwards, braces are kept, e.g. for find.
        let none = forwards(&[]).await;
        assert_eq!(none.in_words(&words), words);
    }

    #[tokio::test]
    async fn an_invalid_forward() {
        let Err(failure) = Forwards::bind(&["db:5432".to_owned()]).await else {
            panic!("it is accepted");
        };
        assert_eq!(crate::exit::exit_code(&failure), 23);
    }
}
