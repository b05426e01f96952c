//! What a node says about itself: read only, from published state; it never touches the way of a message.
//!
//! [`Report`] is the whole of it. With the feature `status`, [`serve`] answers `GET /status`, `/metrics`, `/startupz`,
//! `/livez` and `/readyz`, and shows the [`dashboard`](dashboard()) at `/`.

mod collect;
#[cfg(feature = "status")]
mod dashboard;
#[cfg(feature = "status")]
pub(crate) mod fuzz;
#[cfg(feature = "status")]
mod http;
#[cfg(feature = "status")]
mod listen;
#[cfg(feature = "status")]
mod metrics;
mod report;
#[cfg(feature = "status")]
mod scrape;

#[cfg(feature = "status")]
pub use dashboard::dashboard;
#[cfg(feature = "status")]
pub use http::{StatusConfig, StatusServer, router, serve};
pub use report::{
    CounterReport, DiscoveryReport, DropReport, EmitterReport, GossipReport, InterestReport, LinkReport,
    MemberReport, NodeReport, PartReport, Report, RequestReport, SCHEMA_VERSION, UdpReport,
};
