//! Reading a TOML table key by key, keeping every fault: missing keys, wrong types and keys nobody asked for.

use serde::de::DeserializeOwned;
use toml::Table;

use crate::error::Violations;

/// A table being read. Every key must be asked for before [`Fields::finish`], or it counts as unknown.
pub(crate) struct Fields<'v> {
    path: String,
    table: Table,
    violations: &'v mut Violations,
}

impl<'v> Fields<'v> {
    /// Starts reading `table`, whose keys are reported under `path` (empty for the top of the file).
    pub(crate) fn new(path: impl Into<String>, table: Table, violations: &'v mut Violations) -> Self {
        Self { path: path.into(), table, violations }
    }

    /// Whether there is anything at `key`.
    pub(crate) fn has(&self, key: &str) -> bool {
        self.table.contains_key(key)
    }

    /// The value at `key`; absence and a wrong type are faults.
    pub(crate) fn required<T: DeserializeOwned>(&mut self, key: &str) -> Option<T> {
        if !self.has(key) {
            self.refuse(key, "is required");
        }
        self.optional(key)
    }

    /// The value at `key`, if it is there; a wrong type is a fault.
    pub(crate) fn optional<T: DeserializeOwned>(&mut self, key: &str) -> Option<T> {
        match self.table.remove(key)?.try_into() {
            Ok(value) => Some(value),
            Err(error) => {
                self.refuse(key, error.message().trim());
                None
            }
        }
    }

    /// The required value at `key`, which must also lie in `range`.
    pub(crate) fn number(&mut self, key: &str, range: std::ops::RangeInclusive<u32>) -> Option<u32> {
        let value: u32 = self.required(key)?;
        if range.contains(&value) {
            return Some(value);
        }
        self.refuse(key, format!("must be {}..={}, got {value}", range.start(), range.end()));
        None
    }

    /// The required word at `key`, which must be one of `words`; gives what stands beside it.
    pub(crate) fn word<T: Copy>(&mut self, key: &str, words: &[(&str, T)]) -> Option<T> {
        let given: String = self.required(key)?;
        let found = words.iter().find(|(word, _)| *word == given).map(|&(_, meaning)| meaning);
        if found.is_none() {
            let known: Vec<_> = words.iter().map(|(word, _)| format!("{word:?}")).collect();
            self.refuse(key, format!("must be {}, got {given:?}", known.join(" or ")));
        }
        found
    }

    /// Reads the table at `key` with `read`, if it is there. Keys that `read` leaves are unknown.
    pub(crate) fn table<T>(&mut self, key: &str, read: impl FnOnce(&mut Fields<'_>) -> Option<T>) -> Option<T> {
        let table: Table = self.optional(key)?;
        let mut fields = Fields::new(self.path_of(key), table, self.violations);
        let value = read(&mut fields);
        fields.finish();
        value
    }

    /// As [`Fields::table`], and absence is a fault.
    pub(crate) fn required_table<T>(
        &mut self,
        key: &str,
        read: impl FnOnce(&mut Fields<'_>) -> Option<T>,
    ) -> Option<T> {
        if !self.has(key) {
            self.refuse(key, "is required");
        }
        self.table(key, read)
    }

    /// Reads every table of the array at `key` with `read`; none if it is not there.
    pub(crate) fn tables<T>(&mut self, key: &str, read: impl Fn(&mut Fields<'_>) -> Option<T>) -> Vec<T> {
        let tables: Vec<Table> = self.optional(key).unwrap_or_default();
        let mut values = Vec::with_capacity(tables.len());
        for (index, table) in tables.into_iter().enumerate() {
            let mut fields = Fields::new(format!("{}[{index}]", self.path_of(key)), table, self.violations);
            values.extend(read(&mut fields));
            fields.finish();
        }
        values
    }

    /// Passes over whatever is at `key`.
    pub(crate) fn skip(&mut self, key: &str) {
        self.table.remove(key);
    }

    /// Takes whatever has not been asked for.
    pub(crate) fn rest(&mut self) -> Table {
        std::mem::take(&mut self.table)
    }

    /// Adds a fault of `key`.
    pub(crate) fn refuse(&mut self, key: &str, description: impl Into<String>) {
        let path = self.path_of(key);
        self.violations.add(path, description);
    }

    /// Adds faults found elsewhere, under this table.
    pub(crate) fn refuse_all(&mut self, violations: Violations) {
        for violation in violations.iter() {
            self.refuse(&violation.field, violation.description.clone());
        }
    }

    /// Ends the reading: every key that nobody asked for is a fault.
    pub(crate) fn finish(mut self) {
        for (key, _) in self.rest() {
            self.refuse(&key, "is not a known key");
        }
    }

    fn path_of(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }
}
