#include "gateway/shared_profiles.h"

#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <boost/json.hpp>
#include <utility>
#include <variant>

#include "api/answers.h"
#include "api/json.h"
#include "api/json_fields.h"
#include "api/shared_records.h"
#include "gateway/etcd_answers.h"

namespace portway {
namespace {

constexpr std::chrono::seconds kProfileKnownWithin{1};

void log_profile(std::string_view name, std::string_view what, const Principal& caller) {
  const LogFields fields = actor_of(caller).fields();
  spdlog::info("profile {} of the fleet {} by {}", name, what, who(caller));
}

}  // namespace

SharedProfiles::SharedProfiles(Parts parts)
    : parts_(std::move(parts)),
      table_({.prefix = parts_.keys.profiles().key,
              .parse = parse_profile_record,
              .if_unreadable = IfUnreadable::kStays,
              .on_change = [] {}}),
      mirror_(parts_.executor, parts_.etcd, {.keys = parts_.keys.profiles()}, table_) {}

Profiles SharedProfiles::all() const {
  Profiles profiles;
  for (const auto& [name, entry] : table_.entries()) profiles.emplace(name, entry.value);
  return profiles;
}

Change<bool> SharedProfiles::put(std::string name, Profile profile, Principal caller) {
  if (auto checked = check_profile_name(name); !checked) co_return checked.error();
  const std::string what = fmt::format("profile {} was to be written", name);
  if (!mirror_.stats().warm) {
    co_return Error{ErrorCode::kStoreUnavailable, "The fleet's profiles have not been read yet; try again."};
  }
  const std::size_t count = table_.entries().size();
  if (count >= kMax && !table_.entries().contains(name)) {
    co_return Error{ErrorCode::kQuotaExceeded,
                    "This fleet has as many profiles as it can; delete some first.", "",
                    static_cast<std::int64_t>(kMax), static_cast<std::int64_t>(count)};
  }
  const std::string key = parts_.keys.profile(name);
  const EtcdPut put{.key = key, .value = to_record(profile)};
  // It is written either way; which one says whether there was one.
  EtcdTxn txn{.compares = {{.key = key, .target = EtcdCompare::Target::kCreateRevision, .number = 0}}};
  txn.success.emplace_back(put);
  txn.failure.emplace_back(put);
  const auto answer = co_await parts_.etcd->txn(std::move(txn));
  if (!answer) co_return unavailable(answer.error(), what);
  log_profile(name, answer->succeeded ? "made" : "changed", caller);
  static_cast<void>(co_await mirror_.wait_until_at(answer->header.revision, kProfileKnownWithin));
  co_return answer->succeeded;
}

Change<void> SharedProfiles::remove(std::string name, Principal caller) {
  const Error not_found{ErrorCode::kNotFound, "The fleet has no profile with this name."};
  if (!check_profile_name(name)) co_return not_found;
  const EtcdDelete request{.keys = EtcdKeys::one(parts_.keys.profile(name))};
  const auto deleted = co_await parts_.etcd->erase(request);
  if (!deleted) co_return unavailable(deleted.error(), fmt::format("profile {} was to be deleted", name));
  if (deleted->deleted == 0) co_return not_found;
  log_profile(name, "deleted", caller);
  static_cast<void>(co_await mirror_.wait_until_at(deleted->header.revision, kProfileKnownWithin));
  co_return Result<void>();
}

// --- Handlers.

Result<Response> list_shared_profiles(const SharedProfiles& profiles) {
  boost::json::array list;
  for (const auto& [name, profile] : profiles.all()) list.push_back(profile_json(name, profile, true));
  return json_response(200, {{"profiles", std::move(list)}});
}

boost::asio::awaitable<Result<Response>> put_shared_profile(SharedProfiles& profiles, const Call& call) {
  JsonFields fields(call.request);
  Profile profile = read_profile(fields);
  if (auto error = fields.finish()) co_return std::move(*error);
  const std::string name(call.path[0]);
  const auto made = co_await profiles.put(name, profile, call.caller);
  if (!made) co_return made.error();
  co_return json_response(*made ? 201 : 200, {{"profile", profile_json(name, profile, true)}});
}

boost::asio::awaitable<Result<Response>> delete_shared_profile(SharedProfiles& profiles, const Call& call) {
  const std::string name(call.path[0]);
  if (auto deleted = co_await profiles.remove(name, call.caller); !deleted) co_return deleted.error();
  co_return no_content();
}

}  // namespace portway
