//! The formats that are JSON documents, and those that need more than a template: CSV and DNS zones.
//! Which document does an API or a DNS server import?

use std::fmt::Write;

use ipnet::IpNet;
use serde_json::{Value, json};

use super::{EgressList, ListedRange, rfc3339};

/// The port that webhooks are sent to.
const PORT: u16 = 443;
/// The most ranges in one rule of Google Cloud Armor (cloud.google.com/armor/quotas).
const CLOUD_ARMOR_RANGES_MAX: usize = 10;
/// The mechanisms of one TXT record: even with the longest IPv6 ranges, it fits into a DNS response of 1,232 bytes.
const TXT_MECHANISMS_MAX: usize = 20;

/// Returns the function that `document` of a format names.
pub(super) fn find(name: &str) -> Option<fn(&EgressList) -> String> {
    Some(match name {
        "csv" => csv,
        "prefix_list" => prefix_list,
        "jafar" => jafar,
        "aws_ipv4" => aws_ipv4,
        "aws_ipv6" => aws_ipv6,
        "aws_security_group" => aws_security_group,
        "azure" => azure,
        "gcp" => gcp,
        "terraform" => terraform,
        "cloudflare" => cloudflare,
        "bind" => bind,
        _ => return None,
    })
}

/// Returns the text of a document, with a line feed at its end.
fn text(document: &Value) -> String {
    format!("{document:#}\n")
}

fn description(list: &EgressList) -> String {
    format!("{} serial {}, {}", list.name(), list.serial(), list.date())
}

fn texts<'n>(nets: impl Iterator<Item = &'n IpNet>) -> Vec<String> {
    nets.map(IpNet::to_string).collect()
}

fn prefix_key(net: &IpNet) -> &'static str {
    if super::super::is_v6(net) { "ipv6Prefix" } else { "ipv4Prefix" }
}

/// The structure of Google's ranges (gstatic.com/ipranges/cloud.json), with the state and the dates of each range. The
/// serial is `syncToken`, as in the documents of Google and AWS.
fn prefix_list(list: &EgressList) -> String {
    let prefix = |range: &ListedRange| {
        json!({
            prefix_key(&range.cidr): range.cidr.to_string(), "service": range.pool.as_str(),
            "state": range.state.as_str(), "from": range.from.map(rfc3339), "until": range.until.map(rfc3339),
        })
    };
    text(&json!({
        "syncToken": list.serial().to_string(), "creationTime": list.date(),
        "prefixes": list.ranges.iter().map(prefix).collect::<Vec<_>>(),
    }))
}

/// JAFAR (draft-illyes-webbotauth-jafar-00).
fn jafar(list: &EgressList) -> String {
    let prefix = |net: &IpNet| json!({ prefix_key(net): net.to_string() });
    text(&json!({ "creationTime": list.date(), "prefixes": list.prefixes.iter().map(prefix).collect::<Vec<_>>() }))
}

/// CSV with a header (RFC 4180). No value contains a comma or a quotation mark.
fn csv(list: &EgressList) -> String {
    let mut out = String::from("cidr,family,pool,state,from,until,serial,changed\n");
    for ListedRange { pool, cidr, from, until, state } in &list.ranges {
        let (family, state) = (if super::super::is_v6(cidr) { "ipv6" } else { "ipv4" }, state.as_str());
        let [from, until] = [from, until].map(|time| time.map(rfc3339).unwrap_or_default());
        let (serial, changed) = (list.serial(), list.date());
        // A String accepts every write.
        let _ = writeln!(out, "{cidr},{family},{pool},{state},{from},{until},{serial},{changed}");
    }
    out
}

/// The input of `aws ec2 create-managed-prefix-list --cli-input-json`. A prefix list has one family.
fn aws_ipv4(list: &EgressList) -> String {
    aws_prefix_list(list, false)
}

fn aws_ipv6(list: &EgressList) -> String {
    aws_prefix_list(list, true)
}

fn aws_prefix_list(list: &EgressList, v6: bool) -> String {
    let description = description(list);
    let entry = |net: &IpNet| json!({ "Cidr": net.to_string(), "Description": description });
    let entries: Vec<_> = list.family(v6).map(entry).collect();
    let family = if v6 { "IPv6" } else { "IPv4" };
    text(&json!({
        "PrefixListName": format!("{}-{}", list.name(), family.to_ascii_lowercase()), "AddressFamily": family,
        "MaxEntries": entries.len().max(1), "Entries": entries,
    }))
}

/// The input of `aws ec2 authorize-security-group-ingress --ip-permissions`.
fn aws_security_group(list: &EgressList) -> String {
    let description = description(list);
    let ranges = |v6, key: &str| -> Vec<_> {
        list.family(v6).map(|net| json!({ key: net.to_string(), "Description": description })).collect()
    };
    text(&json!([{
        "IpProtocol": "tcp", "FromPort": PORT, "ToPort": PORT,
        "IpRanges": ranges(false, "CidrIp"), "Ipv6Ranges": ranges(true, "CidrIpv6"),
    }]))
}

/// A template for `az deployment group create`: a rule of a network security group for each family, since a rule has
/// addresses of one family.
fn azure(list: &EgressList) -> String {
    let rule = |(v6, family, offset): (bool, &str, u32)| {
        let ranges = texts(list.family(v6));
        let name = format!("[concat(parameters('networkSecurityGroup'), '/{}-{family}')]", list.name());
        let rule = json!({
            "type": "Microsoft.Network/networkSecurityGroups/securityRules", "apiVersion": "2023-09-01", "name": name,
            "properties": {
                "description": description(list), "priority": format!("[add(parameters('priority'), {offset})]"),
                "direction": "Inbound", "access": "Allow", "protocol": "Tcp",
                "sourcePortRange": "*", "sourceAddressPrefixes": ranges,
                "destinationPortRange": PORT.to_string(), "destinationAddressPrefix": "*",
            },
        });
        (!ranges.is_empty()).then_some(rule)
    };
    let rules = [(false, "ipv4", 0), (true, "ipv6", 1)].into_iter().filter_map(rule);
    text(&json!({
        "$schema": "https://schema.management.azure.com/schemas/2019-04-01/deploymentTemplate.json#",
        "contentVersion": "1.0.0.0",
        "metadata": { "description": description(list) },
        "parameters": {
            "networkSecurityGroup": { "type": "string" }, "priority": { "type": "int", "defaultValue": 1000 },
        },
        "resources": rules.collect::<Vec<_>>(),
    }))
}

/// The input of `gcloud compute security-policies import --file-format json`: a policy of Cloud Armor that allows the
/// ranges and denies every other address.
fn gcp(list: &EgressList) -> String {
    let rule = |priority: usize, action: &str, ranges: Vec<String>| {
        json!({
            "priority": priority, "action": action, "description": description(list),
            "match": { "versionedExpr": "SRC_IPS_V1", "config": { "srcIpRanges": ranges } },
        })
    };
    let chunks = list.prefixes.chunks(CLOUD_ARMOR_RANGES_MAX).enumerate();
    let allowed = chunks.map(|(index, nets)| rule(1000 + index, "allow", texts(nets.iter())));
    // Every policy has a last rule, of this priority.
    let denied = rule(i32::MAX as usize, "deny(403)", vec!["*".to_owned()]);
    text(&json!({
        "name": list.name(), "description": description(list), "type": "CLOUD_ARMOR",
        "rules": allowed.chain([denied]).collect::<Vec<_>>(),
    }))
}

/// Terraform's JSON syntax, for a file `*.tf.json`. Terraform ignores the key `//`.
fn terraform(list: &EgressList) -> String {
    let name = list.name().replace('-', "_");
    text(&json!({
        "//": description(list),
        "locals": {
            format!("{name}_ipv4"): texts(list.family(false)), format!("{name}_ipv6"): texts(list.family(true)),
        },
    }))
}

/// The body of `PUT /accounts/ID/rules/lists/ID/items`, which replaces the items of a Cloudflare list.
fn cloudflare(list: &EgressList) -> String {
    let description = description(list);
    let item = |net: &IpNet| json!({ "ip": net.to_string(), "comment": description });
    text(&list.prefixes.iter().map(item).collect())
}

/// Records for `$INCLUDE` in a zone: a policy as of SPF (RFC 7208). More ranges than fit into one record are in records
/// below it, which the first one includes; `%{d}` is the name of the record itself.
fn bind(list: &EgressList) -> String {
    let mechanism = |net: &IpNet| format!("{}:{net}", if super::super::is_v6(net) { "ip6" } else { "ip4" });
    let mechanisms: Vec<_> = list.prefixes.iter().map(mechanism).collect();
    let owner = format!("_{}", list.name());
    let mut out = format!("; {}\n", description(list));
    let mut record = |owner: &str, mechanisms: &[String]| {
        let strings = mechanisms.iter().map(|mechanism| format!("\"{mechanism} \"")).collect::<Vec<_>>().join(" ");
        // A String accepts every write.
        let _ = writeln!(out, "{owner} 300 IN TXT \"v=spf1 \" {strings} \"-all\"");
    };
    let chunks: Vec<_> = mechanisms.chunks(TXT_MECHANISMS_MAX).collect();
    if let [] | [_] = *chunks {
        record(&owner, &mechanisms);
        return out;
    }
    let includes: Vec<_> = (1..=chunks.len()).map(|index| format!("include:{index}.%{{d}}")).collect();
    record(&owner, &includes);
    for (index, mechanisms) in chunks.into_iter().enumerate() {
        record(&format!("{}.{owner}", index + 1), mechanisms);
    }
    out
}
