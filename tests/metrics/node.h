// What an exporter reads, as plain values that a test sets.
#pragma once

#include <gmock/gmock.h>

#include <array>
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
    return Exporter({.for_each_forward =
                         [this](const std::function<void(const Forward&)>& visit) {
                           for (const Forward& forward : forwards) visit(forward);
                         },
                     .forward_stats = [this] { return stats; },
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
                     .api = &api});
  }

  ParsedText scrape() {
    ParsedText parsed = parse_text_format(exporter().expose());
    EXPECT_THAT(parsed.errors, testing::IsEmpty());
    return parsed;
  }
};

}  // namespace portway::test
