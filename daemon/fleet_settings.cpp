#include "daemon/fleet_settings.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <map>
#include <utility>
#include <vector>

#include "api/shared_records.h"
#include "fleet/etcd_table.h"
#include "fleet/fleet_keys.h"

namespace portway {
namespace {

// The watch tells what changes. This is only for an etcd that was restored and did not end it.
constexpr std::chrono::minutes kCheckPeriod{1};

constexpr std::string_view kKeySubject = "key";
constexpr std::string_view kProfileSubject = "profile";

/// What is wrong, for an operator; empty: nothing is. `then`: what becomes of those that cannot be read.
std::string fault_of(const EtcdMirror* mirror, std::size_t unreadable, std::string_view then,
                     std::string_view more) {
  std::vector<std::string> faults;
  if (!more.empty()) faults.emplace_back(more);
  if (unreadable != 0)
    faults.push_back(fmt::format("{} cannot be read and {}; the log says why", unreadable, then));
  const std::string error = mirror == nullptr ? "" : mirror->stats().error;
  if (!error.empty()) faults.push_back("they may be out of date: " + error);
  return fmt::format("{}", fmt::join(faults, "; "));
}

}  // namespace

struct FleetSettings::Known {
  std::string prefix;
  EtcdTable<ApiKey> keys;
  EtcdTable<Profile> profiles;
  // They go first. Null: nothing is followed.
  std::unique_ptr<EtcdMirror> keys_mirror = nullptr;
  std::unique_ptr<EtcdMirror> profiles_mirror = nullptr;
};

FleetSettings::FleetSettings(Parts parts) : parts_(std::move(parts)) {
  parts_.control.set_profiles_pending([this] {
    return known_ != nullptr && known_->profiles_mirror != nullptr && !known_->profiles_mirror->stats().warm;
  });
}

FleetSettings::~FleetSettings() {
  parts_.control.set_profiles_pending(nullptr);
}

void FleetSettings::follow(std::shared_ptr<Etcd> etcd, const std::string& prefix) {
  keep_only(prefix);
  stop();
  const FleetKeys keys(prefix);
  const EtcdMirrorOptions of_keys{.keys = keys.api_keys(), .check_period = kCheckPeriod};
  const EtcdMirrorOptions of_profiles{.keys = keys.profiles(), .check_period = kCheckPeriod};
  if (known_ == nullptr) {
    known_ = std::make_unique<Known>(
        Known{.prefix = prefix,
              .keys = EtcdTable<ApiKey>({.prefix = of_keys.keys.key,
                                         .parse = parse_api_key_record,
                                         .on_change = [this] { apply_keys(); }}),
              .profiles = EtcdTable<Profile>({.prefix = of_profiles.keys.key,
                                              .parse = parse_profile_record,
                                              .if_unreadable = IfUnreadable::kStays,
                                              .on_change = [this] { apply_profiles(); }})});
  }
  const auto executor = parts_.context.get_executor();
  known_->keys_mirror = std::make_unique<EtcdMirror>(executor, etcd, of_keys, known_->keys);
  known_->profiles_mirror =
      std::make_unique<EtcdMirror>(executor, std::move(etcd), of_profiles, known_->profiles);
}

void FleetSettings::stop() {
  if (known_ == nullptr) return;
  known_->keys_mirror.reset();
  known_->profiles_mirror.reset();
}

void FleetSettings::keep_only(std::string_view prefix) {
  if (known_ == nullptr || known_->prefix == prefix) return;
  known_.reset();
  parts_.control.set_fleet_keys({});
  parts_.control.set_fleet_profiles({});
  look();
}

bool FleetSettings::keys_pending() const {
  return known_ == nullptr || known_->keys_mirror == nullptr || !known_->keys_mirror->stats().warm;
}

void FleetSettings::apply_keys() {
  std::map<Uuid, ApiKey> keys;
  for (const auto& [name, entry] : known_->keys.entries()) keys.emplace(entry.value.id, entry.value);
  parts_.control.set_fleet_keys(std::move(keys));
  look();
}

void FleetSettings::apply_profiles() {
  Profiles profiles;
  for (const auto& [name, entry] : known_->profiles.entries()) profiles.emplace(name, entry.value);
  parts_.control.set_fleet_profiles(std::move(profiles));
  parts_.on_profiles();
  look();
}

void FleetSettings::look() {
  const auto report = [this](std::string_view subject, const std::string& detail) {
    if (detail.empty()) return parts_.faults.clear(FaultPart::kFleet, subject);
    parts_.faults.set(FaultPart::kFleet, subject, detail);
  };
  if (known_ == nullptr) {
    report(kKeySubject, "");
    report(kProfileSubject, "");
    return;
  }
  report(kKeySubject, fault_of(known_->keys_mirror.get(), known_->keys.unreadable(), "are not valid here",
                               parts_.control.fleet_keys_fault()));
  report(kProfileSubject,
         fault_of(known_->profiles_mirror.get(), known_->profiles.unreadable(), "stay as they were", ""));
}

}  // namespace portway
