//! The Merkle tree over the records of the audit log (RFC 6962 §2.1).
//! Which single hash stands for all records so far?

use crate::digest::{Fingerprint, Sha256};

/// The largest size of a tree that is resumed, so that no size overflows.
const SIZE_MAX: u64 = 1 << 62;

/// A tree that grows at its end. It keeps only the roots of its perfect subtrees: 64 hashes at most.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Tree {
    size: u64,
    /// The roots, the largest subtree first. A tree has one for each bit that is set in its size.
    subtrees: Vec<Sha256>,
}

impl Tree {
    /// Returns the tree with these subtrees. `None`: a tree of this size has another number of subtrees, or no log is that
    /// large.
    pub(super) fn resume(size: u64, subtrees: Vec<Sha256>) -> Option<Self> {
        (size <= SIZE_MAX && subtrees.len() == size.count_ones() as usize).then_some(Self { size, subtrees })
    }

    /// The number of records.
    pub(super) fn size(&self) -> u64 {
        self.size
    }

    /// Returns the roots of the perfect subtrees, the largest subtree first.
    pub(super) fn subtrees(&self) -> &[Sha256] {
        &self.subtrees
    }

    /// Appends a record.
    pub(super) fn push(&mut self, record: &[u8]) {
        let mut root = hash(&[&[0], record]);
        for _ in 0..self.size.trailing_ones() {
            let left = self.subtrees.pop().unwrap_or_default();
            root = hash(&[&[1], &left, &root]);
        }
        self.subtrees.push(root);
        self.size += 1;
    }

    /// Returns the Merkle tree hash (MTH) of all records.
    pub(super) fn root(&self) -> Sha256 {
        let mut subtrees = self.subtrees.iter().rev().copied();
        let Some(last) = subtrees.next() else { return hash(&[]) };
        subtrees.fold(last, |right, left| hash(&[&[1], &left, &right]))
    }
}

/// Hashes the concatenated parts.
pub(super) fn hash(parts: &[&[u8]]) -> Sha256 {
    let mut hash = Fingerprint::default();
    parts.iter().for_each(|part| hash.bytes(part));
    hash.finish()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The definition of RFC 6962 §2.1, word for word.
    fn defined(records: &[Vec<u8>]) -> Sha256 {
        match records {
            [] => hash(&[]),
            [record] => hash(&[&[0], record]),
            _ => {
                let split = (records.len() - 1).ilog2();
                let (left, right) = records.split_at(1 << split);
                hash(&[&[1], &defined(left), &defined(right)])
            }
        }
    }

    fn grown(records: &[Vec<u8>]) -> Tree {
        records.iter().fold(Tree::default(), |mut tree, record| {
            tree.push(record);
            tree
        })
    }

    proptest! {
        #[test]
        fn merkle_tree_that_grows_has_the_root_that_the_rfc_defines(
            records in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..8), 0..70),
        ) {
            let tree = grown(&records);
            prop_assert_eq!(tree.root(), defined(&records));
            prop_assert_eq!(Tree::resume(tree.size(), tree.subtrees().to_vec()), Some(tree));
        }
    }

    #[test]
    fn merkle_tree_does_not_resume_from_subtrees_of_another_size() {
        let tree = grown(&[b"a".to_vec(), b"b".to_vec(), b"c".to_vec()]);
        assert_eq!(Tree::resume(4, tree.subtrees().to_vec()), None);
    }
}
