#include "control/node_faults.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <spdlog/spdlog.h>

namespace portway {
namespace {

std::string name_of(FaultPart part, std::string_view subject) {
  return subject.empty() ? std::string(to_string(part)) : fmt::format("{} {}", to_string(part), subject);
}

}  // namespace

std::string_view to_string(FaultPart part) {
  switch (part) {
    case FaultPart::kStore:
      return "store";
    case FaultPart::kApi:
      return "api";
    case FaultPart::kMetrics:
      return "metrics";
    case FaultPart::kCertificate:
      return "certificate";
    case FaultPart::kAdminKey:
      return "admin_key";
    case FaultPart::kAccessLog:
      return "access_log";
    case FaultPart::kAuditLog:
      return "audit_log";
    case FaultPart::kKeeper:
      return "keeper";
    case FaultPart::kWorker:
      return "worker";
    case FaultPart::kFleet:
      return "fleet";
  }
  return "unknown";
}

void NodeFaults::set(FaultPart part, std::string_view subject, std::string_view detail) {
  const auto [at, is_new] = faults_.try_emplace({part, std::string(subject)});
  NodeFault& fault = at->second;
  if (!is_new && fault.detail == detail) return;
  if (is_new) fault = {.part = part, .subject = std::string(subject), .detail = {}, .since = now()};
  fault.detail = detail;
  spdlog::error("fault: {}: {}", name_of(part, subject), detail);
}

void NodeFaults::clear(FaultPart part, std::string_view subject) {
  const auto at = faults_.find(std::pair(part, std::string(subject)));
  if (at == faults_.end()) return;
  const auto lasted = std::chrono::duration<double>(now() - at->second.since).count();
  spdlog::info("fault: {} is mended, after {:.0f} s", name_of(part, subject), lasted);
  faults_.erase(at);
}

std::vector<NodeFault> NodeFaults::all() const {
  std::vector<NodeFault> all;
  all.reserve(faults_.size());
  for (const auto& [key, fault] : faults_) all.push_back(fault);
  return all;
}

std::array<std::uint64_t, kFaultParts> NodeFaults::counts() const {
  std::array<std::uint64_t, kFaultParts> counts{};
  for (const auto& [key, fault] : faults_) ++counts[static_cast<std::size_t>(key.first)];
  return counts;
}

std::string NodeFaults::summary() const {
  std::vector<std::string> names;
  names.reserve(faults_.size());
  for (const auto& [key, fault] : faults_) names.push_back(name_of(key.first, key.second));
  return fmt::format("{}", fmt::join(names, ", "));
}

}  // namespace portway
