//! The codes of warnings, which an operator writes into `acknowledge`.
//! Which warnings exist?

use std::fmt;

macro_rules! codes {
    ($($name:ident $text:literal;)*) => {
        /// A kind of warning.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum WarningCode { $($name),* }

        impl WarningCode {
            pub const ALL: &[Self] = &[$(Self::$name),*];

            pub fn as_str(self) -> &'static str {
                match self { $(Self::$name => $text),* }
            }
        }
    };
}

codes! {
    AcknowledgedNothing "acknowledged_nothing";
    AdminPublic "admin_public";
    AdminSocketMode "admin_socket_mode";
    AllowMetadata "allow_metadata";
    AllowWithoutEffect "allow_without_effect";
    BandwidthReports "bandwidth_reports";
    CaptureRecipients "capture_recipients";
    ColonInName "colon_in_name";
    CredentialEverywhere "credential_everywhere";
    CredentialInPlaintext "credential_in_plaintext";
    CredentialUnverified "credential_unverified";
    CrlMissing "crl_missing";
    ExcludesNothing "excludes_nothing";
    ExpiresSoon "expires_soon";
    FileDescriptors "file_descriptors";
    GuardedHost "guarded_host";
    IdentityUsage "identity_usage";
    NameServers "name_servers";
    NoAddress "no_address";
    NoClient "no_client";
    NoClientCa "no_client_ca";
    NoKeyInForce "no_key_in_force";
    NoRoute "no_route";
    NotPublic "not_public";
    NotStrict "not_strict";
    Plaintext "plaintext";
    RangeEnded "range_ended";
    ReadableSecret "readable_secret";
    SharedRange "shared_range";
    SharedSecret "shared_secret";
    SystemStore "system_store";
    TenantKeys "tenant_keys";
    TokensInPlaintext "tokens_in_plaintext";
    TunnelPaths "tunnel_paths";
    TunnelUnsigned "tunnel_unsigned";
    UnfinishedRollback "unfinished_rollback";
    Unused "unused";
    UnusualRoot "unusual_root";
    Unverified "unverified";
}

impl fmt::Display for WarningCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
