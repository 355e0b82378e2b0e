//! Rule tables: one row per normative sentence, named by section; `now` is a constant.

mod freshness;
mod groups;
mod key;
mod model;
mod no_vary_search;
mod precondition;
mod range;
mod reuse;
mod second_opinion;
mod spelling;
mod storage;
mod targeted;
mod validation;
mod vary;
mod widening;
