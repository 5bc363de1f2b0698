//! `kubevpn services`.

use clap::ValueEnum;
use k8s_openapi::api::core::v1::Service;
use kubevpn_client::{Env, KubeconfigArgs, load};
use serde_json::{Value, json};

use super::kube::KubeArgs;
use super::reach::{reach, server_named};
use super::service::{self, ServiceList};
use super::suggest::missing_namespace;
use crate::exit::Failure;
use crate::out;
use crate::progress;
use crate::table::align;

/// List the Services that can be reached, with the address to paste
///
/// The address is a URL if the port's name, protocol or number belongs to HTTP, else HOST:PORT. READY counts the endpoints
/// that are ready; a Service without one refuses connections.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  # the Services of the context's namespace
  kubevpn services

  # everywhere
  kubevpn services -A

  # for a program
  kubevpn services -o json | jq -r '.[].address'")]
pub(crate) struct ServicesCommand {
    /// List the Services of all namespaces
    #[arg(short = 'A', long, conflicts_with = "namespace")]
    all_namespaces: bool,
    /// Output format
    #[arg(short, long, value_name = "FORMAT", value_enum, default_value_t)]
    output: ServicesFormat,
    /// Do not print the column names
    #[arg(long)]
    no_headers: bool,
    #[command(flatten)]
    kube: KubeArgs,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum ServicesFormat {
    /// A line for each Service
    #[default]
    Table,
    /// The same with type and cluster IP
    Wide,
    /// A list of objects; keys are never removed
    Json,
    /// The same as YAML
    Yaml,
    /// The names alone, as kubectl writes them: service/NAME
    Name,
}

impl ServicesCommand {
    pub(crate) async fn run(self) -> Result<(), Failure> {
        let loaded = load(&KubeconfigArgs::from(self.kube), &Env::of_process())?;
        let (client, _) = reach(loaded.config).await?;
        let namespace = Some(loaded.namespace.as_str()).filter(|_| !self.all_namespaces);
        let listing = service::list(&client, namespace);
        let found = progress::shown(server_named(&loaded.server), listing).await?;
        if let (Some(namespace), true) = (namespace, found.services.is_empty())
            && let Some(missing) = missing_namespace(&client, namespace).await
        {
            return Err(missing.into());
        }
        match self.output {
            ServicesFormat::Table | ServicesFormat::Wide => {
                let rows = rows(&found, self.output == ServicesFormat::Wide, self.no_headers);
                out::print(align(&rows))?;
                if let (Some(namespace), true) = (namespace, found.services.is_empty()) {
                    out::aside(format_args!(
                        "no Service in namespace {namespace}: -A lists those of all namespaces"
                    ));
                }
            }
            ServicesFormat::Json => out::json(&document(&found))?,
            ServicesFormat::Yaml => {
                let yaml = serde_yaml_ng::to_string(&document(&found));
                out::print(yaml.map_err(anyhow::Error::from)?)?;
            }
            ServicesFormat::Name => {
                for found in &found.services {
                    out::line(format_args!("service/{}", service::name(found).1))?;
                }
            }
        }
        if found.cut {
            out::aside(format_args!(
                "there are more than {}: choose a namespace with -n",
                found.services.len()
            ));
        }
        Ok(())
    }
}

fn rows(found: &ServiceList, wide: bool, no_headers: bool) -> Vec<Vec<String>> {
    let mut head = vec!["NAMESPACE", "NAME", "PORTS", "READY", "ADDRESS"];
    if wide {
        head.extend(["TYPE", "CLUSTER-IP"]);
    }
    let head: Vec<String> = head.into_iter().map(str::to_owned).collect();
    let mut rows = if no_headers { Vec::new() } else { vec![head] };
    for of in &found.services {
        let (namespace, name) = service::name(of);
        let ports = service::ports(of).map(|port| match &port.name {
            Some(name) => format!("{}({name})", port.port),
            None => port.port.to_string(),
        });
        let mut row = vec![
            namespace,
            name,
            ports.collect::<Vec<_>>().join(","),
            found
                .ready(of)
                .map_or_else(|| "?".to_owned(), |n| n.to_string()),
            service::address(of).unwrap_or_default(),
        ];
        if wide {
            row.extend([
                type_of(of).unwrap_or_default(),
                cluster_ip(of).unwrap_or_default(),
            ]);
        }
        rows.push(row);
    }
    rows
}

fn type_of(service: &Service) -> Option<String> {
    service.spec.as_ref()?.type_.clone()
}

fn cluster_ip(service: &Service) -> Option<String> {
    service.spec.as_ref()?.cluster_ip.clone()
}

fn document(found: &ServiceList) -> Value {
    let services = found.services.iter().map(|of| {
        let (namespace, name) = service::name(of);
        let ports = service::ports(of).map(
            |port| json!({"port": port.port, "name": port.name, "appProtocol": port.app_protocol}),
        );
        json!({
            "namespace": namespace,
            "name": name,
            "type": type_of(of),
            "clusterIP": cluster_ip(of),
            "ports": ports.collect::<Vec<_>>(),
            "readyEndpoints": found.ready(of),
            "address": service::address(of),
        })
    });
    services.collect()
}
