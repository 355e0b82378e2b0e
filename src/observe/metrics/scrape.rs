//! The collector that sums the hot counters and reads the gauges when somebody scrapes.

use super::hot::{Hot, RouteTotals};
use super::series::{self, BUCKETS_NS, Kind, Series};
use super::{Gauges, MEMORY};
use parking_lot::RwLock;
use prometheus::Registry;
use prometheus::core::{Collector, Desc};
use prometheus::process_collector::ProcessCollector;
use prometheus::proto::{Bucket, Counter, Gauge, Histogram, LabelPair, Metric, MetricFamily, MetricType};
use std::sync::Arc;

/// Where gauges are read from, once it is known.
#[derive(Clone, Default)]
pub(super) struct GaugeSource(Arc<RwLock<Option<Arc<dyn Gauges>>>>);

impl GaugeSource {
    pub(super) fn set(&self, gauges: Arc<dyn Gauges>) {
        *self.0.write() = Some(gauges);
    }
    fn get(&self) -> Option<Arc<dyn Gauges>> {
        self.0.read().clone()
    }
}

/// Registers the series that are read at scrape, `process_*` too.
pub(super) fn register(registry: &Registry, hot: Arc<Hot>, gauges: GaugeSource) {
    let descs = HOT.iter().chain(READ).map(Series::desc).collect();
    let collector = Box::new(Scrape { hot, gauges, descs });
    for collector in [collector as Box<dyn Collector>, Box::new(ProcessCollector::for_self())] {
        registry.register(collector).expect("declared names and labels are valid, and each is registered once");
    }
}

const HOT: &[Series] = &[series::REQUESTS, series::RESPONSE_BYTES, series::REQUEST_SECONDS, series::WORKER_REQUESTS];
const READ: &[Series] = &[
    series::TIER_BYTES,
    series::TIER_LIMIT,
    series::TIER_RESPONSES,
    series::FILL_BYTES,
    series::FILL_LIMIT,
    series::PAGE_BYTES,
    series::PINNED_BYTES,
    series::IN_FLIGHT,
    series::WAITING,
    series::MARKERS,
    series::JOURNAL_ENTRIES,
    series::JOURNAL_FOLDED,
    series::RATE_LIMIT_CALLERS,
    series::DICTIONARIES,
    series::DICTIONARY_BYTES,
    series::JOURNAL_TRUSTED,
    series::JOURNAL_REMEMBERED,
    series::JOURNAL_EPOCH,
    series::JOURNAL_APPLIED_AT,
    series::JOURNAL_UNTOLD,
    series::JOURNAL_UNTOLD_LOST,
];

struct Scrape {
    hot: Arc<Hot>,
    gauges: GaugeSource,
    descs: Vec<Desc>,
}

impl Collector for Scrape {
    fn desc(&self) -> Vec<&Desc> {
        self.descs.iter().collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let (mut requests, mut bytes, mut seconds) = (Vec::new(), Vec::new(), Vec::new());
        for (names, totals) in self.hot.totals() {
            push_route([&names.site, &names.route], &totals, &mut requests, &mut bytes, &mut seconds);
        }
        let mut families = self.read_gauges();
        families.push(family(&series::REQUESTS, requests));
        families.push(family(&series::RESPONSE_BYTES, bytes));
        families.push(family(&series::REQUEST_SECONDS, seconds));
        families.push(family(&series::WORKER_REQUESTS, self.by_worker()));
        families
    }
}

impl Scrape {
    fn by_worker(&self) -> Vec<Metric> {
        let one = |(worker, count): (usize, u64)| metric(Kind::Counter, labels(&series::WORKER_REQUESTS, &[&worker.to_string()]), count);
        self.hot.requests_by_worker().enumerate().map(one).collect()
    }

    fn read_gauges(&self) -> Vec<MetricFamily> {
        let gauges = self.gauges.get();
        let read = gauges.as_deref();
        let tier = read.map(Gauges::memory_tier).unwrap_or_default();
        let (fill, fill_limit) = read.map(Gauges::fill_memory).unwrap_or_default();
        let (flights, waiting) = read.map(Gauges::flights).unwrap_or_default();
        let (entries, folded) = read.map(Gauges::journal).unwrap_or_default();
        let fleet = read.map(Gauges::fleet).unwrap_or_default();
        let (dictionaries, dictionary_bytes) = read.map(Gauges::dictionaries).unwrap_or_default();
        let markers = read.map(Gauges::markers).unwrap_or_default();
        vec![
            value(&series::TIER_BYTES, &[MEMORY], tier.bytes),
            value(&series::TIER_LIMIT, &[MEMORY], tier.limit_bytes),
            value(&series::TIER_RESPONSES, &[MEMORY], tier.responses),
            value(&series::FILL_BYTES, &[], fill),
            value(&series::FILL_LIMIT, &[], fill_limit),
            value(&series::PAGE_BYTES, &[], read.map(Gauges::pages).unwrap_or_default()),
            value(&series::PINNED_BYTES, &[], read.map(Gauges::pinned_memory).unwrap_or_default()),
            value(&series::IN_FLIGHT, &[], flights as u64),
            value(&series::WAITING, &[], waiting as u64),
            value(&series::MARKERS, &[], markers as u64),
            value(&series::JOURNAL_ENTRIES, &[], entries as u64),
            value(&series::JOURNAL_FOLDED, &[], folded),
            value(&series::RATE_LIMIT_CALLERS, &[], read.map(Gauges::rate_limit_callers).unwrap_or_default()),
            value(&series::DICTIONARIES, &[], dictionaries),
            value(&series::DICTIONARY_BYTES, &[], dictionary_bytes),
            value(&series::JOURNAL_TRUSTED, &[], u64::from(fleet.trusted)),
            value(&series::JOURNAL_REMEMBERED, &[], u64::from(fleet.remembered)),
            value(&series::JOURNAL_EPOCH, &[], fleet.epoch),
            value(&series::JOURNAL_APPLIED_AT, &[], fleet.applied_ms),
            value(&series::JOURNAL_UNTOLD, &[], fleet.untold as u64),
            value(&series::JOURNAL_UNTOLD_LOST, &[], fleet.lost),
        ]
    }
}

fn push_route(
    [site, route]: [&str; 2],
    totals: &RouteTotals,
    requests: &mut Vec<Metric>,
    bytes: &mut Vec<Metric>,
    seconds: &mut Vec<Metric>,
) {
    for (result, source, class, count) in totals.requests() {
        let labels = labels(&series::REQUESTS, &[site, route, result.as_str(), source.as_str(), class]);
        requests.push(metric(Kind::Counter, labels, count));
    }
    for (result, source, count) in totals.bytes() {
        let labels = labels(&series::RESPONSE_BYTES, &[site, route, result.as_str(), source.as_str()]);
        bytes.push(metric(Kind::Counter, labels, count));
    }
    for (result, buckets, nanos) in totals.durations() {
        let mut metric = Metric::from_label(labels(&series::REQUEST_SECONDS, &[site, route, result.as_str()]));
        metric.set_histogram(histogram(buckets, nanos));
        seconds.push(metric);
    }
}

/// `buckets` holds one more than there are bounds; the encoder adds `+Inf` from the count.
fn histogram(buckets: &[u64], nanos: u64) -> Histogram {
    let mut cumulative = 0;
    let bounded = BUCKETS_NS.iter().zip(buckets).map(|(bound, count)| {
        cumulative += count;
        let mut bucket = Bucket::default();
        bucket.set_upper_bound(*bound as f64 / 1e9);
        bucket.set_cumulative_count(cumulative);
        bucket
    });
    let mut histogram = Histogram::default();
    histogram.set_bucket(bounded.collect());
    histogram.set_sample_count(buckets.iter().sum());
    histogram.set_sample_sum(nanos as f64 / 1e9);
    histogram
}

fn value(series: &Series, values: &[&str], value: u64) -> MetricFamily {
    family(series, vec![metric(series.kind, labels(series, values), value)])
}

fn metric(kind: Kind, labels: Vec<LabelPair>, value: u64) -> Metric {
    let mut metric = Metric::from_label(labels);
    if kind == Kind::Counter {
        let mut counter = Counter::default();
        counter.set_value(value as f64);
        metric.set_counter(counter);
    } else {
        let mut gauge = Gauge::default();
        gauge.set_value(value as f64);
        metric.set_gauge(gauge);
    }
    metric
}

fn labels(series: &Series, values: &[&str]) -> Vec<LabelPair> {
    let pair = |(name, value): (&&str, &&str)| {
        let mut pair = LabelPair::default();
        pair.set_name((*name).to_owned());
        pair.set_value((*value).to_owned());
        pair
    };
    series.labels.iter().zip(values).map(pair).collect()
}

fn family(series: &Series, metrics: Vec<Metric>) -> MetricFamily {
    let mut family = MetricFamily::default();
    family.set_name(series.name.to_owned());
    family.set_help(series.help.to_owned());
    family.set_field_type(match series.kind {
        Kind::Counter => MetricType::COUNTER,
        Kind::Gauge => MetricType::GAUGE,
        Kind::Histogram => MetricType::HISTOGRAM,
    });
    family.set_metric(metrics);
    family
}
