//! A mixing function for numbers.
//! Which address does a seed draw, in every build?

/// Mixes `value` into `seed` with the finaliser of SplitMix64, applied twice. It is not for secrets. It is equal in
/// every build, so that a sticky source survives upgrades.
pub(super) fn mix(seed: u64, value: u64) -> u64 {
    let finish = |mut x: u64| {
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    };
    finish(finish(seed.wrapping_add(0x9e37_79b9_7f4a_7c15)) ^ value)
}

pub(super) fn mix_u128(seed: u64) -> u128 {
    u128::from(mix(seed, 1)) << 64 | u128::from(mix(seed, 2))
}
