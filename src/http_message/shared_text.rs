//! A text that shares its memory with parts of it.
//! How does a record have the path of a request without a copy?

use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

/// A text, or the first part of one. A clone shares the memory. A part does not give access to the rest.
#[derive(Clone)]
pub struct SharedText {
    whole: Arc<str>,
    length: usize,
}

impl SharedText {
    /// Returns the part before the first such character; the whole text if it has none.
    pub fn before(&self, character: char) -> Self {
        Self { whole: Arc::clone(&self.whole), length: self.find(character).unwrap_or(self.length) }
    }
}

impl Deref for SharedText {
    type Target = str;
    fn deref(&self) -> &str {
        self.whole.get(..self.length).unwrap_or_default() // `before` ends it at a character
    }
}

impl<T: Into<Arc<str>>> From<T> for SharedText {
    fn from(text: T) -> Self {
        let whole = text.into();
        Self { length: whole.len(), whole }
    }
}

impl fmt::Debug for SharedText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&**self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shared_text_before_a_character_shares_the_memory_of_the_whole() {
        let whole = SharedText::from("/a?b?c");
        let path = whole.before('?');
        assert_eq!((&*path, &*path.before('?'), &*whole.before('#')), ("/a", "/a", "/a?b?c"));
        assert!(Arc::ptr_eq(&whole.whole, &path.whole));
    }
}
