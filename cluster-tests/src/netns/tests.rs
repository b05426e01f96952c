use super::*;

#[test]
fn subnets_and_their_addresses() {
    let (base, bits) = parse("10.1.2.0/29").unwrap();
    let made = AtomicU32::new(0);
    let wires = Wires { name: "unit.0.0.0".into(), base, bits, made, _guard: None };
    assert_eq!(wires.address(0).unwrap(), Ipv4Addr::new(10, 1, 2, 1));
    assert_eq!(wires.address(5).unwrap(), Ipv4Addr::new(10, 1, 2, 6));
    assert!(wires.address(6).is_err() && wires.address(7).is_err() && wires.address(u32::MAX).is_err());
    for bad in ["10.1.2.0", "10.1.2.1/24", "10.1.2.0/30", "10.0.0.0/8", "ten/24", "10.1.2.0/99"] {
        assert!(parse(bad).is_err(), "{bad}");
    }
}

#[test]
fn prefixes_that_are_none_are_refused() {
    for bad in ["", "a.b", "a b", "an-endless-prefix-of-forty-bytes-and-more"] {
        assert_eq!(Net::new(bad, "10.0.0.0/24").unwrap_err().kind(), io::ErrorKind::InvalidInput, "{bad}");
    }
}
