//! Tables and properties of the strings that a configuration may have.
//! Does each string have one value, or an error that says what to write?

use super::*;
use proptest::prelude::*;

#[test]
fn durations_are_one_number_and_one_unit() {
    for (text, milliseconds) in [("250ms", 250), ("30s", 30_000), ("5m", 300_000), ("1h", 3_600_000), ("0s", 0)] {
        assert_eq!(duration(text), Ok(Duration::from_millis(milliseconds)), "{text}");
    }
    for text in ["", "s", "30", "30 s", "1m30s", "-1s", "1.5s", "30S", "8785h", "18446744073709551616s"] {
        assert!(duration(text).is_err(), "{text}");
    }
    assert_eq!(retention("180d"), Ok(Duration::from_secs(180 * 24 * 3600)));
    assert!(retention("3661d").is_err() && retention("0d").is_err());
    assert!(positive_duration("0s").is_err());
}

#[test]
fn sizes_are_one_number_and_one_unit() {
    let good = [("512 B", 512), ("64 KiB", 65_536), ("1MB", 1_000_000), ("1 MiB", 1 << 20), ("2GiB", 2 << 30)];
    for (text, bytes) in good {
        assert_eq!(size(text), Ok(bytes), "{text}");
    }
    for text in ["", "1", "1  MiB", "1 mib", "MiB", "1.5 MiB", "1 TiB", "99999999999 GiB"] {
        assert!(size(text).is_err(), "{text}");
    }
}

#[test]
fn rates_are_a_count_and_a_period() {
    assert_eq!(rate("50/s"), Ok(Rate { count: 50, period: Duration::from_secs(1) }));
    assert_eq!(rate("10/m"), Ok(Rate { count: 10, period: Duration::from_secs(60) }));
    assert_eq!(rate("5/h"), Ok(Rate { count: 5, period: Duration::from_secs(3600) }));
    for text in ["", "50", "/s", "+5/s", "5/d", "5 / s", "5000000000/s", "5/s/s"] {
        assert!(rate(text).is_err(), "{text}");
    }
}

#[test]
fn bandwidths_are_a_size_per_second() {
    assert_eq!((bandwidth("10 MiB/s"), bandwidth("1KB/s")), (Ok(10 << 20), Ok(1000)));
    for text in ["", "/s", "10/s", "10 MiB", "10 MiB/m", "10 Mbit/s", "10 MiB / s", "99999999999 GiB/s"] {
        assert!(bandwidth(text).is_err(), "{text}");
    }
}

#[test]
fn timestamps_need_an_offset_from_utc() {
    assert!(timestamp("2027-01-01T00:00:00Z").is_ok());
    assert_eq!(timestamp("2027-01-01T01:00:00+01:00"), timestamp("2027-01-01T00:00:00Z"));
    assert_eq!(timestamp("2027-01-01T00:00:00").unwrap_err().reason, "the offset from UTC is missing");
    assert_eq!(timestamp("2027-01-01").unwrap_err().help, "write \"2027-01-01T00:00:00Z\"");
    assert!(timestamp("soon").is_err());
}

#[test]
fn networks_are_in_cidr_notation_without_host_bits() {
    assert_eq!(network("192.0.2.7").unwrap().to_string(), "192.0.2.7/32");
    assert_eq!(network("2001:db8::7").unwrap().to_string(), "2001:db8::7/128");
    assert_eq!(network("2001:db8::/32").unwrap().to_string(), "2001:db8::/32");
    let help = network("192.0.2.7/24").unwrap_err().help;
    assert_eq!(help, "write the network, \"192.0.2.0/24\", or the one address, \"192.0.2.7\"");
    assert_eq!(network("::ffff:192.0.2.0/124").unwrap_err().help, "write \"192.0.2.0/28\"");
    for text in ["", "192.0.2/24", "192.0.2.0/33", "example.com", "192.0.2.0/24 "] {
        assert!(network(text).is_err(), "{text}");
    }
}

#[test]
fn listen_sockets_are_tcp_unix_or_systemd() {
    for text in ["127.0.0.1:4750", "[::1]:0", "unix:/run/outgate/proxy.sock", "systemd"] {
        assert!(listen(text).is_ok(), "{text}");
    }
    for text in ["", "4750", ":4750", "localhost:4750", "192.0.2.1", "::1", "unix:proxy.sock", "Systemd"] {
        assert!(listen(text).is_err(), "{text}");
    }
    assert!(listen(&format!("unix:/{}", "x".repeat(107))).is_err());
    assert_eq!(server("192.0.2.53"), Ok("192.0.2.53:53".parse().unwrap()));
    assert_eq!(server("[2001:db8::53]:5353"), Ok("[2001:db8::53]:5353".parse().unwrap()));
    assert!(server("192.0.2.53:0").is_err());
}

proptest! {
    #[test]
    fn token_hash_round_trips(hash: [u8; 32]) {
        let hex: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
        prop_assert_eq!(token_hash(&format!("sha256:{hex}")), Ok(hash));
        prop_assert_eq!(token_hash(&format!("sha256:{}", hex.to_uppercase())), Ok(hash));
        let short = format!("sha256:{}", &hex[1..]);
        prop_assert!(token_hash(&short).is_err());
    }

    #[test]
    fn value_parsers_never_panic(text: String) {
        let _ = (duration(&text), size(&text), rate(&text), bandwidth(&text), timestamp(&text), network(&text), listen(&text));
        let _ = (server(&text), token_hash(&text), name(&text).is_ok(), pseudonym(&text), word(&text));
    }
}
