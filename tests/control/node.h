// A node's control plane on a fake data plane and a real store in a directory of its own, for tests.
#pragma once

#include <SQLiteCpp/Database.h>
#include <gtest/gtest.h>
#include <poll.h>

#include <boost/asio/co_spawn.hpp>
#include <boost/json.hpp>
#include <chrono>
#include <cstddef>
#include <exception>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "api/dispatch.h"
#include "api/event_json.h"
#include "api/resources.h"
#include "control/control.h"
#include "tests/control/fake_dataplane.h"
#include "tests/support/run.h"

namespace portway::test {

struct FakeProcess final : NodeProcess {
  ProcessStatus process_status() const override { return status; }
  Result<void> start_upgrade() override {
    if (!refusal.empty()) return Error{ErrorCode::kUpgradeNotPossible, refusal};
    status.upgrading = true;
    return {};
  }

  ProcessStatus status{.pid = 4711, .handover_timeout = std::chrono::seconds(30)};
  std::string refusal;
};

class Node {
 public:
  static constexpr std::string_view kAdminKey = "pwk_admin-key-of-the-tests-AAAAAAAAAAAAAAAAAAAAA";

  /// `return_path` outlives it; what it makes for a session is removed with the session, without delay.
  explicit Node(std::string_view settings = "", ReturnPath* return_path = nullptr)
      : return_path_(return_path),
        directory_(testing::TempDir() + "/portway-node-" + to_string(make_uuid())),
        config_(parse_config("[guests]\nnetworks = [\"198.19.0.0/16\", "
                             "\"fd00:19::/64\"]\n[node]\npublic_hostname = \"compute-1.example\"\n"
                             "public_addresses = [\"203.0.113.7\", \"2001:db8::7\"]\n"
                             "[api]\nrate_limit_per_second = 0\n" +
                                 std::string(settings),
                             "test")
                    .value()) {
    start();
  }
  ~Node() {
    stop();
    std::filesystem::remove_all(directory_);
  }
  Node(const Node&) = delete;
  Node& operator=(const Node&) = delete;

  void start() {
    store_ = Store::open(path()).value();
    watch_ = SessionWatch::start(context).value();
    control_ = std::make_unique<Control>(
        config_, Control::Parts{context,
                                *store_,
                                dataplane,
                                *watch_,
                                events,
                                stats,
                                return_path_,
                                "",
                                {},
                                [this](std::span<const IpAddress>) { return lost_addresses; },
                                {.now = [this] { return now() + clock_set_by; },
                                 .uptime = [this] { return kernel_uptime() + time_passed; }}});
    control_->set_admin_key(kAdminKey);
    control_->restore().value();
    api_context_.emplace(ApiContext{context, *control_, *control_, stats, closes,
                                    [](MetricsScope scope) -> NextPiece {
                                      return [text = "metrics of scope " +
                                                     std::to_string(static_cast<int>(scope))]() mutable {
                                        return std::exchange(text, {});
                                      };
                                    },
                                    process});
    api_ = std::make_unique<Dispatcher>(DispatchContext{control_->keys(), config_.api, stats},
                                        all_node_routes(*api_context_),
                                        [this] { return std::chrono::steady_clock::now() + time_passed; });
  }
  void stop() {
    context.restart();
    while (control_->has_changes_under_way()) context.run_one();
    api_.reset();
    api_context_.reset();
    control_.reset();
    watch_.reset();
    store_.reset();
  }
  void restart() {
    stop();
    dataplane.opened.clear();
    start();
  }

  /// Saves what is not on disk yet.
  void settle() {
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(10);
    while (control_->sessions_unsaved() > 0 && std::chrono::steady_clock::now() < deadline) {
      context.run_one_for(std::chrono::milliseconds(100));
    }
    ASSERT_EQ(control_->sessions_unsaved(), 0U);
  }

  static Request request_of(std::string method, std::string target, std::string body, std::string_view key) {
    Request request;
    request.id = "request-1";
    request.method = std::move(method);
    request.target = std::move(target);
    request.body = std::move(body);
    if (!key.empty()) request.headers["authorization"] = "Bearer " + std::string(key);
    if (!request.body.empty()) request.headers["content-type"] = "application/json";
    return request;
  }

  Response call(std::string method, std::string target, std::string body = "",
                std::string_view key = kAdminKey) {
    return handle(request_of(std::move(method), std::move(target), std::move(body), key));
  }

  /// The same with an Idempotency-Key.
  Response call_once(std::string idempotency_key, std::string method, std::string target, std::string body,
                     std::string_view key = kAdminKey) {
    Request once = request_of(std::move(method), std::move(target), std::move(body), key);
    once.headers["idempotency-key"] = std::move(idempotency_key);
    return handle(once);
  }
  Response handle(const Request& request) { return run(api_->handle(request)); }
  /// Runs a change to its end.
  template <class Value>
  Value run(boost::asio::awaitable<Value> change) {
    return test::run(context, std::move(change), [this] {
      if (once_) std::exchange(once_, nullptr)();
    });
  }
  /// Handles all of these at once; the answers are in their order.
  std::vector<Response> handle_at_once(const std::vector<Request>& requests) {
    std::vector<Response> responses(requests.size());
    for (std::size_t i = 0; i < requests.size(); ++i) {
      boost::asio::co_spawn(
          context,
          [this, &requests, &responses, i]() -> boost::asio::awaitable<void> {
            responses[i] = co_await api_->handle(requests[i]);
          },
          [this](std::exception_ptr) { --under_way_; });
      ++under_way_;
    }
    context.restart();
    while (under_way_ > 0) context.run_one();
    return responses;
  }
  /// The whole of a body that is produced in pieces.
  static std::string whole(const Response& response) {
    std::string all;
    for (std::string piece = response.pieces(); !piece.empty(); piece = response.pieces()) all += piece;
    return all;
  }
  static std::string header(const Response& response, std::string_view name) {
    for (const auto& [each, value] : response.headers) {
      if (each == name) return value;
    }
    return "";
  }

  /// The same with its address.
  void put_at(const std::string& id, const std::string& address, const std::string& owner) {
    const Response response = call(
        "PUT", "/instances/" + id,
        R"({"guest_address": ")" + address + R"(", "tap": "tap-)" + id + R"(", "owner": ")" + owner + "\"}");
    ASSERT_LT(response.status, 300U) << response.body;
  }
  /// Registers an instance of `owner`.
  void put(const std::string& id, const std::string& owner = "alice") {
    const Response response =
        call("PUT", "/instances/" + id,
             R"({"guest_address": "198.19.0.2", "tap": "tap-)" + id + R"(", "owner": ")" + owner + "\"}");
    ASSERT_LT(response.status, 300U) << response.body;
  }
  /// The body of GET /events for this caller.
  std::shared_ptr<BodyStream> follow(const Principal& caller) {
    return event_stream(events.subscribe(caller, ""));
  }
  /// The answer with a new key; `fields` are more of its body: ", \"scope\": \"read\"".
  boost::json::object make_key(const std::string& role, const std::string& owner,
                               const std::string& fields = "") {
    const Response response =
        call("POST", "/api-keys", R"({"role": ")" + role + R"(", "owner": ")" + owner + "\"" + fields + "}");
    EXPECT_EQ(response.status, 201U) << response.body;
    return json(response);
  }
  static std::string secret_of(const boost::json::object& made) {
    return std::string(made.at("secret").as_string());
  }
  static std::string id_of(const boost::json::object& made) {
    return std::string(made.at("api_key").at("id").as_string());
  }
  /// A new tenant key's secret.
  std::string tenant_key(const std::string& owner = "alice") {
    const Response response = call("POST", "/api-keys", R"({"role": "tenant", "owner": ")" + owner + "\"}");
    return std::string(json(response).at("secret").as_string());
  }

  static boost::json::object json(const Response& response) {
    return boost::json::parse(response.body).as_object();
  }
  /// The id of the forward that a POST has created.
  static std::string forward_id(const Response& created) {
    return std::string(json(created).at("port_forward").at("id").as_string());
  }
  static std::string code(const Response& response) {
    return std::string(json(response).at("code").as_string());
  }

  /// Calls `what` once while the next change waits for the disk.
  void while_the_disk_is_waited_for(std::function<void()> what) { once_ = std::move(what); }
  /// Waits for events of the node's links and processes, and processes them.
  void dispatch_events() {
    pollfd due{.fd = watch_->descriptor(), .events = POLLIN, .revents = 0};
    ASSERT_EQ(::poll(&due, 1, 10'000), 1);
    watch_->dispatch();
  }

  /// Like a disk that accepts nothing: another program has the file locked.
  void lock_store() {
    locker_ = std::make_unique<SQLite::Database>(path(), SQLite::OPEN_READWRITE);
    locker_->exec("BEGIN IMMEDIATE");
  }
  void unlock_store() { locker_.reset(); }

  std::string path() const { return directory_ + "/portway.db"; }
  Control& control() { return *control_; }
  Config& config() { return config_; }  // the live one
  Store& store() { return *store_; }
  Dispatcher& api() { return *api_; }

  boost::asio::io_context context;
  FakeDataplane dataplane;
  EventHub events;
  ApiStats stats;
  RecentCloses closes{100};
  FakeProcess process;
  std::vector<IpAddress> lost_addresses;  // public ones that the node does not have
  // Of the clocks that the keys go by; the second one also of the API's.
  std::chrono::milliseconds clock_set_by{0};
  std::chrono::milliseconds time_passed{0};

 private:
  ReturnPath* const return_path_;
  const std::string directory_;
  Config config_;
  std::unique_ptr<Store> store_;
  std::unique_ptr<SessionWatch> watch_;
  std::unique_ptr<Control> control_;
  std::optional<ApiContext> api_context_;
  std::unique_ptr<Dispatcher> api_;
  std::unique_ptr<SQLite::Database> locker_;
  std::function<void()> once_;
  std::size_t under_way_ = 0;
};

/// What a caller's request for these forwards comes to.
inline Result<std::vector<ForwardStatus>> create_forwards(Node& node, const Principal& caller,
                                                          std::string_view instance_id,
                                                          std::span<const ForwardSpec> specs) {
  return node.run(node.control().create_forwards(caller, std::string(instance_id),
                                                 {.specs = {specs.begin(), specs.end()}}));
}

}  // namespace portway::test
