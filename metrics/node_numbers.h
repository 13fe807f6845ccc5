// Numbers of the node that neither the registry nor the data plane has, and where they are read.
#pragma once

#include <cstdint>
#include <memory>

#include "api/http/answer_budget.h"
#include "api/http/server.h"
#include "control/access_log.h"
#include "control/control.h"
#include "control/line_writer.h"
#include "proxy/inherited.h"

namespace portway {

struct NodeNumbers {
  std::uint64_t access_log_dropped = 0;
  std::uint64_t log_lines_dropped = 0;
  // Forwards that exist but are not served.
  std::uint64_t forwards_failed = 0;
  // Running instances whose guests should see their clients' addresses but do not.
  std::uint64_t instances_without_return_path = 0;
  std::uint64_t guest_namespaces = 0;
  // Packets that the source guard dropped.
  std::uint64_t forged_packets = 0;
  HandoverStats handover = {};
  ServerStats api_server = {};
  AnswerStats answers = {};
};

class NodeNumbersReader {
 public:
  virtual ~NodeNumbersReader() = default;
  virtual NodeNumbers read_numbers() const = 0;
};

/// Reads each number from its owner. All of them must outlive it; of those behind a pointer, null counts
/// nothing.
class NodeNumbersOf final : public NodeNumbersReader {
 public:
  struct Owners {
    const Control& control;
    const AnswerBudget& answers;
    const LineWriter* log;
    const std::unique_ptr<AccessLog>& access_log;  // null until it is open
    const std::unique_ptr<Server>& api_server;     // null until it listens
    const HandoverStats& handover;
  };
  explicit NodeNumbersOf(const Owners& owners) : owners_(owners) {}

  NodeNumbers read_numbers() const override;

 private:
  const Owners owners_;
};

}  // namespace portway
