//! Linux capabilities of the calling thread (capabilities(7)).
//! Which privileges does outgate keep if root starts it?

use rustix::io;
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, clear_ambient_capability_set, remove_capability_from_bounding_set,
    set_capabilities,
};

pub(super) fn has(capability: CapabilitySet) -> bool {
    capabilities(None).is_ok_and(|sets| sets.effective.contains(capability))
}

/// Drops all capabilities but the kept ones, of those that the thread has. A program that it would execute gets none.
pub(super) fn keep(kept: CapabilitySet) -> io::Result<()> {
    let held = capabilities(None)?;
    if held.effective.contains(CapabilitySet::SETPCAP) {
        for capability in (0..u64::BITS).map(|bit| CapabilitySet::from_bits_retain(1 << bit)) {
            let _ = remove_capability_from_bounding_set(capability); // EINVAL: the kernel has no such capability
        }
    }
    clear_ambient_capability_set()?;
    let left = held.permitted & kept;
    let wanted = CapabilitySets { effective: left, permitted: left, inheritable: CapabilitySet::empty() };
    // The unit's filter forbids the call, and leaves nothing to drop.
    if held == wanted { Ok(()) } else { set_capabilities(None, wanted) }
}
