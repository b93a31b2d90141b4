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

#[cfg(test)]
mod tests {
    use super::*;

    /// The first outputs of SplitMix64 for the seed 1234567, from Rosetta Code, "Pseudo-random numbers/Splitmix64".
    const SPLITMIX64: [u64; 5] = [
        6_457_827_717_110_365_317,
        3_203_168_211_198_807_973,
        9_817_491_932_198_370_423,
        4_593_380_528_125_082_431,
        16_408_922_859_458_223_821,
    ];

    #[test]
    fn mix_applies_the_finaliser_of_splitmix64_twice() {
        const INCREMENT: u64 = 0x9e37_79b9_7f4a_7c15;
        let mut state = 1_234_567_u64;
        for outputs in SPLITMIX64.windows(2) {
            // The inner finaliser gives the first output. The value turns it into the next state.
            let next_state = state.wrapping_add(INCREMENT).wrapping_add(INCREMENT);
            assert_eq!(mix(state, outputs[0] ^ next_state), outputs[1]);
            state = state.wrapping_add(INCREMENT);
        }
        let halves = mix_u128(7);
        assert_eq!([(halves >> 64) as u64, halves as u64], [mix(7, 1), mix(7, 2)]);
    }
}
