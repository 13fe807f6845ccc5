#include "metrics/exporter.h"

#include <optional>
#include <span>
#include <utility>

#include "metrics/control_families.h"
#include "metrics/dataplane_families.h"
#include "metrics/forward_families.h"
#include "metrics/process.h"
#include "metrics/sink.h"

namespace portway {
namespace {

void emit_node(Sink& sink, const ExporterSources& sources) {
  emit_dataplane(sink, sources.dataplane.node_stats());
  emit_control(sink, sources);
}

}  // namespace

struct Scrape::State {
  State(const ExporterSources& from, MetricsScope wanted) : sources(from), scope(wanted) {
    if (scope == MetricsScope::kNode) next_family = forward_families().end();
  }

  /// False if there is nothing more.
  bool add_more() {
    if (next_family != forward_families().end()) {
      add_forwards();
      return true;
    }
    if (scope == MetricsScope::kForwards || node_done) return false;
    node_done = true;
    emit_node(sink, sources);
    return true;
  }

  /// Adds a family's forwards until the piece is full.
  void add_forwards() {
    const ForwardFamily& what = *next_family;
    if (!family) family.emplace(sink, what.type, what.name, what.help, what.labels);
    const Forward* last = nullptr;
    bool full = false;
    sources.registry.forwards_after(place, [&](const Forward& forward) {
      what.add(family->label(0, forward.id), forward, sources);
      last = &forward;
      full = text.size() >= kPieceBytes;
      return !full;
    });
    if (full) {
      place = {last->instance_id, last->id};
      return;
    }
    place = {};
    family.reset();
    ++next_family;
  }

  const ExporterSources& sources;
  const MetricsScope scope;
  std::string text;  // the piece so far
  TextSink sink{text};
  std::span<const ForwardFamily>::iterator next_family = forward_families().begin();
  std::optional<Family> family;  // while its series are written
  ForwardPlace place;            // within `family`
  bool node_done = false;
};

Scrape::Scrape(const ExporterSources& sources, MetricsScope scope)
    : state_(std::make_unique<State>(sources, scope)) {}

Scrape::~Scrape() = default;

std::string Scrape::next() {
  while (state_->text.size() < kPieceBytes && state_->add_more()) {
  }
  return std::exchange(state_->text, {});
}

Exporter::Exporter(const ExporterSources& sources) : sources_(sources) {
  (void)read_process_stats();  // computes the start time from the clock as it is now
}

std::vector<prometheus::MetricFamily> Exporter::Collect() const {
  FamilySink sink;
  for (const ForwardFamily& what : forward_families()) {
    Family family(sink, what.type, what.name, what.help, what.labels);
    sources_.registry.forwards_after({}, [&](const Forward& forward) {
      what.add(family.label(0, forward.id), forward, sources_);
      return true;
    });
  }
  emit_node(sink, sources_);
  return std::move(sink.families);
}

std::unique_ptr<Scrape> Exporter::scrape(MetricsScope scope) const {
  return std::make_unique<Scrape>(sources_, scope);
}

std::function<std::string()> Exporter::pieces(MetricsScope scope) const {
  return [scrape = std::shared_ptr<Scrape>(this->scrape(scope))] { return scrape->next(); };
}

std::string Exporter::expose(MetricsScope scope) const {
  Scrape scrape(sources_, scope);
  std::string text;
  for (std::string piece = scrape.next(); !piece.empty(); piece = scrape.next()) text += piece;
  return text;
}

}  // namespace portway
