//! The table of the formats of the list: one row for each.
//! In which formats can a firewall team get the ranges?

use super::template::Family::{self, Both, V4, V6};
use super::template::{Renderer, Section, lines};
use super::{EgressList, document as documents};

/// A format of the list.
pub struct Format {
    pub name: &'static str,
    /// The name of its file in a publication.
    pub file: &'static str,
    pub media_type: &'static str,
    /// The product that reads the format, and how.
    pub usage: &'static str,
    /// The start and the end of a comment; `None`: the format has no comments.
    comment: Option<(&'static str, &'static str)>,
    head: &'static str,
    sections: &'static [Section],
    foot: &'static str,
    /// The function that makes the document, in place of the template.
    document: Option<fn(&EgressList) -> String>,
}

const PLAIN: &str = "text/plain; charset=utf-8";
const JSON: &str = "application/json";
const HASH: Option<(&str, &str)> = Some(("# ", ""));
/// The comment at the start of each format that has comments.
const COMMENT: &str =
    "Source addresses of webhooks, <scope>: serial <serial>, changed <date>, <count> CIDRs. Allow them all.";

/// Returns a text format without its template.
const fn text(name: &'static str, file: &'static str, usage: &'static str) -> Format {
    Format { name, file, media_type: PLAIN, usage, comment: HASH, head: "", sections: &[], foot: "", document: None }
}

const fn document(
    name: &'static str,
    file: &'static str,
    usage: &'static str,
    make: fn(&EgressList) -> String,
) -> Format {
    Format { media_type: JSON, comment: None, document: Some(make), ..text(name, file, usage) }
}

impl Format {
    pub fn find(name: &str) -> Option<&'static Format> {
        FORMATS.iter().find(|format| format.name == name)
    }

    pub fn render(&self, list: &EgressList) -> String {
        if let Some(make) = self.document {
            return make(list);
        }
        let mut renderer = Renderer::new(list);
        if let Some((start, end)) = self.comment {
            for line in [COMMENT, self.usage] {
                renderer.text(start);
                renderer.text(line);
                renderer.text(end);
                renderer.text("\n");
            }
        }
        renderer.text(self.head);
        self.sections.iter().for_each(|section| renderer.section(section));
        renderer.text(self.foot);
        renderer.finish()
    }
}

/// A set of nftables for one family.
const fn nftables_set(family: Family, open: &'static str, empty: &'static str) -> Section {
    Section { family, open, line: "<cidr>", separator: ",\n\t\t", close: "\n\t}\n}\n", empty }
}

const NFTABLES_SETS: &[Section] = &[
    nftables_set(
        V4,
        "set <identifier>_v4 {\n\ttype ipv4_addr\n\tflags interval\n\telements = {\n\t\t",
        "set <identifier>_v4 {\n\ttype ipv4_addr\n\tflags interval\n}\n",
    ),
    nftables_set(
        V6,
        "set <identifier>_v6 {\n\ttype ipv6_addr\n\tflags interval\n\telements = {\n\t\t",
        "set <identifier>_v6 {\n\ttype ipv6_addr\n\tflags interval\n}\n",
    ),
];

/// Every format, in the order of the documents.
pub static FORMATS: &[Format] = &[
    Format {
        comment: None,
        sections: &[lines(Both, "<cidr>\n")],
        ..text("text", "ranges.txt", "one CIDR per line, without comments: for scripts and most firewalls")
    },
    Format {
        media_type: "text/csv; charset=utf-8",
        ..document("csv", "ranges.csv", "a table with the pool, state and dates of each range", documents::csv)
    },
    document(
        "json",
        "ranges.json",
        "Google's structure of prefixes, with the state and dates of each",
        documents::prefix_list,
    ),
    document("jafar", "jafar.json", "JAFAR, draft-illyes-webbotauth-jafar-00", documents::jafar),
    Format {
        sections: NFTABLES_SETS,
        ..text("nftables", "nftables.conf", "nftables: two sets, to include in a table of yours")
    },
    Format {
        head: "table inet <identifier>\ndelete table inet <identifier>\ntable inet <identifier> {\n",
        sections: NFTABLES_SETS,
        foot: "chain input {\n\ttype filter hook input priority filter; policy accept;\n\
               \tct state established,related accept\n\
               \ttcp dport 443 ip saddr @<identifier>_v4 accept\n\
               \ttcp dport 443 ip6 saddr @<identifier>_v6 accept\n\
               \ttcp dport 443 drop\n}\n}\n",
        ..text(
            "nftables-ruleset",
            "nftables-ruleset.conf",
            "nft -f FILE: accepts connections to port 443 from these addresses alone",
        )
    },
    Format {
        head: "create <identifier>_v4 hash:net family inet -exist\nflush <identifier>_v4\n\
               create <identifier>_v6 hash:net family inet6 -exist\nflush <identifier>_v6\n",
        sections: &[lines(V4, "add <identifier>_v4 <cidr>\n"), lines(V6, "add <identifier>_v6 <cidr>\n")],
        ..text("ipset", "ipset.save", "ipset restore < FILE")
    },
    Format {
        head: "*filter\n:<identifier> - [0:0]\n",
        sections: &[
            lines(V4, "-4 -A <identifier> -s <cidr> -p tcp --dport 443 -j ACCEPT\n"),
            lines(V6, "-6 -A <identifier> -s <cidr> -p tcp --dport 443 -j ACCEPT\n"),
        ],
        foot: "COMMIT\n",
        ..text(
            "iptables",
            "iptables.rules",
            "iptables-restore --noflush FILE, ip6tables-restore --noflush FILE; then jump to the chain",
        )
    },
    Format {
        head: "set -e\n",
        sections: &[lines(Both, "ufw allow proto tcp from <cidr> to any port 443 comment '<name> <serial>'\n")],
        ..text("ufw", "ufw.sh", "sh FILE")
    },
    document(
        "aws",
        "aws.json",
        "aws ec2 create-managed-prefix-list --cli-input-json file://FILE (IPv4)",
        documents::aws_ipv4,
    ),
    document(
        "aws-ipv6",
        "aws-ipv6.json",
        "aws ec2 create-managed-prefix-list --cli-input-json file://FILE (IPv6)",
        documents::aws_ipv6,
    ),
    document(
        "aws-security-group",
        "aws-security-group.json",
        "aws ec2 authorize-security-group-ingress --group-id ID --ip-permissions file://FILE",
        documents::aws_security_group,
    ),
    document(
        "azure",
        "azure.json",
        "az deployment group create --template-file FILE --parameters networkSecurityGroup=NAME",
        documents::azure,
    ),
    document(
        "gcp",
        "gcp.json",
        "gcloud compute security-policies import NAME --file-name FILE --file-format json",
        documents::gcp,
    ),
    document(
        "terraform",
        "outgate.tf.json",
        "Terraform: locals, in the JSON syntax of *.tf.json",
        documents::terraform,
    ),
    Format {
        comment: None,
        sections: &[lines(Both, "<cidr> <name> serial <serial> <date>\n")],
        ..text("pan", "pan.txt", "Palo Alto Networks: an external dynamic list of the type IP List")
    },
    Format {
        comment: None,
        sections: &[lines(Both, "<cidr>\n")],
        ..text("fortigate", "fortigate.txt", "FortiGate: an external IP address threat feed")
    },
    Format {
        sections: &[
            Section {
                open: "config firewall address\n",
                close: "end\n",
                ..lines(
                    V4,
                    "    edit \"<name> <cidr>\"\n        set subnet <network> <mask>\n        set comment \"serial <serial>\"\n    next\n",
                )
            },
            Section {
                open: "config firewall addrgrp\n    edit \"<name>\"\n        set member",
                close: "\n        set comment \"serial <serial>, <date>\"\n    next\nend\n",
                ..lines(V4, " \"<name> <cidr>\"")
            },
            Section {
                open: "config firewall address6\n",
                close: "end\n",
                ..lines(
                    V6,
                    "    edit \"<name> <cidr>\"\n        set ip6 <cidr>\n        set comment \"serial <serial>\"\n    next\n",
                )
            },
            Section {
                open: "config firewall addrgrp6\n    edit \"<name>\"\n        set member",
                close: "\n        set comment \"serial <serial>, <date>\"\n    next\nend\n",
                ..lines(V6, " \"<name> <cidr>\"")
            },
        ],
        ..text("fortigate-cli", "fortigate.conf", "FortiGate: commands for address objects and groups")
    },
    Format {
        comment: Some(("! ", "")),
        sections: &[
            Section { open: "object-group network <identifier>_v4\n", ..lines(V4, " <cisco>\n") },
            Section { open: "object-group v6-network <identifier>_v6\n", ..lines(V6, " <cisco>\n") },
        ],
        ..text("cisco", "cisco-ios.txt", "Cisco IOS: object groups")
    },
    Format {
        comment: Some(("! ", "")),
        sections: &[Section {
            open: "object-group network <identifier>\n description serial <serial>, <date>\n",
            ..lines(Both, " network-object <cisco>\n")
        }],
        ..text("asa", "cisco-asa.txt", "Cisco ASA: an object group")
    },
    Format {
        comment: Some(("/* ", " */")),
        sections: &[Section {
            open: "policy-options {\n    replace:\n    prefix-list <name> {\n",
            close: "    }\n}\n",
            ..lines(Both, "        <cidr>;\n")
        }],
        ..text("juniper", "juniper.conf", "Junos: load replace FILE")
    },
    Format {
        sections: &[
            Section {
                open: "/ip firewall address-list\nremove [find list=<name>]\n",
                empty: "/ip firewall address-list\nremove [find list=<name>]\n",
                ..lines(V4, "add list=<name> address=<cidr> comment=\"serial <serial>\"\n")
            },
            Section {
                open: "/ipv6 firewall address-list\nremove [find list=<name>]\n",
                empty: "/ipv6 firewall address-list\nremove [find list=<name>]\n",
                ..lines(V6, "add list=<name> address=<cidr> comment=\"serial <serial>\"\n")
            },
        ],
        ..text("mikrotik", "mikrotik.rsc", "MikroTik RouterOS: import FILE")
    },
    Format {
        sections: &[Section {
            open: "$ranges = @(\n",
            separator: ",\n",
            close: "\n)\nRemove-NetFirewallRule -Name '<name>' -ErrorAction SilentlyContinue\n\
                    New-NetFirewallRule -Name '<name>' -DisplayName 'Webhooks (<name>)' \
                    -Description 'serial <serial>, <date>' -Direction Inbound -Protocol TCP -LocalPort 443 \
                    -RemoteAddress $ranges -Action Allow\n",
            ..lines(Both, "    '<cidr>'")
        }],
        ..text("windows", "windows.ps1", "Windows: a script for PowerShell as an administrator")
    },
    Format {
        sections: &[lines(Both, "allow <cidr>;\n")],
        ..text("nginx", "nginx.conf", "nginx: include FILE; and then deny all; in the location")
    },
    Format {
        sections: &[lines(Both, "Require ip <cidr>\n")],
        ..text("apache", "apache.conf", "Apache httpd: Include FILE in the Location, in a RequireAny of its own")
    },
    Format {
        sections: &[lines(Both, "<cidr>\n")],
        ..text("haproxy", "haproxy.lst", "HAProxy: acl from_outgate src -f FILE")
    },
    Format {
        sections: &[Section { open: "@<identifier> remote_ip", close: "\n", ..lines(Both, " \\\n\t<cidr>") }],
        ..text("caddy", "caddy.conf", "Caddy: import FILE in the site; the matcher is @NAME")
    },
    document(
        "cloudflare",
        "cloudflare.json",
        "Cloudflare: PUT /accounts/ID/rules/lists/ID/items",
        documents::cloudflare,
    ),
    Format {
        media_type: "text/csv; charset=utf-8",
        sections: &[lines(Both, "<cidr>,,,,\n")],
        ..text("geofeed", "geofeed.csv", "RFC 8805, without locations")
    },
    Format {
        media_type: PLAIN,
        ..document("bind", "bind.zone", "BIND: $INCLUDE FILE in a zone, TXT records as of SPF", documents::bind)
    },
];
