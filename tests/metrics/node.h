// What an exporter reads, as plain values that a test sets.
#pragma once

#include <gmock/gmock.h>

#include <algorithm>
#include <array>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "metrics/exporter.h"
#include "tests/metrics/text_format.h"

namespace portway::test {

/// A node with forwards, two workers and an API, all of them plain values that a test sets.
struct Node {
  std::vector<Forward> forwards;
  std::vector<ForwardStats> stats;
  std::array<WorkerCounters, 2> workers;
  std::string io_backend = "uring";
  std::string io_backend_reason;
  PortPool pool;
  ServerStats api_server;
  ApiStats api;

  Forward& add_forward(std::uint16_t host_port) {
    Forward forward;
    forward.id = make_uuid();
    forward.instance_id = "vm-1";
    forward.guest_port = 3000;
    forward.host_port = host_port;
    forwards.push_back(forward);
    stats.push_back({.id = forwards.back().id});
    return forwards.back();
  }

  Exporter exporter() {
    return Exporter({.forwards_after =
                         [this](const ForwardPlace& after, const std::function<bool(const Forward&)>& visit) {
                           auto next = std::ranges::find(forwards, after.id, &Forward::id);
                           next = next == forwards.end() ? forwards.begin() : next + 1;
                           while (next != forwards.end() && visit(*next)) ++next;
                         },
                     .forward_stats = [this](const ForwardId& id) -> std::optional<ForwardStats> {
                       const auto found = std::ranges::find(stats, id, &ForwardStats::id);
                       return found == stats.end() ? std::nullopt : std::optional(*found);
                     },
                     .node_stats =
                         [this] {
                           return NodeStats{.io_backend = io_backend,
                                            .io_backend_reason = io_backend_reason,
                                            .workers = {&workers[0], &workers[1]}};
                         },
                     .port_pool = [this] { return pool; },
                     .access_log_dropped = [] { return std::uint64_t{0}; },
                     .log_lines_dropped = [] { return std::uint64_t{0}; },
                     .forwards_failed = [] { return std::uint64_t{0}; },
                     .instances_without_return_path = [] { return std::uint64_t{0}; },
                     .forged_packets = [] { return std::uint64_t{0}; },
                     .api_server = [this] { return api_server; },
                     .answers = [] { return AnswerStats{}; },
                     .api = &api});
  }

  ParsedText scrape() {
    ParsedText parsed = parse_text_format(exporter().expose());
    EXPECT_THAT(parsed.errors, testing::IsEmpty());
    return parsed;
  }
};

}  // namespace portway::test
