// A network namespace with real members of etcd in it, and the test's thread.
#pragma once

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sched.h>

#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/io_context.hpp>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <filesystem>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

#include "base/fd.h"
#include "fleet/etcd.h"
#include "tests/support/network.h"
#include "tests/support/process.h"
#include "tests/support/requirements.h"
#include "tests/support/run.h"
#include "tests/support/temporary_directory.h"

namespace portway::test {

/// Empty if etcd is there.
inline std::string why_no_etcd() {
  return std::filesystem::exists("/usr/bin/etcd") && std::filesystem::exists("/usr/bin/etcdctl")
             ? ""
             : "etcd is missing: install the packages etcd-server and etcd-client";
}

struct EtcdMemberOptions {
  std::string cluster = {};  // the peers; empty: it alone
  std::string scheme = "http";
  std::vector<std::string> more = {};  // arguments
};

/// One member: its address is 198.18.0.N, its data outlive its process.
class EtcdMember {
 public:
  EtcdMember(const NetworkNamespace& network, const TemporaryDirectory& directory, int number)
      : network_(network), number_(std::to_string(number)), data_(directory.path() / ("member" + number_)) {
    network.ip("address add " + address() + "/32 dev lo");
  }

  std::string address() const { return "198.18.0." + number_; }
  std::string url(const std::string& scheme = "http") const { return scheme + "://" + address() + ":2379"; }
  std::string peer() const { return "m" + number_ + "=http://" + address() + ":2380"; }

  /// Returns at once; wait() waits until it serves.
  void launch(const EtcdMemberOptions& options) {
    options_ = options;
    std::vector<std::string> command{"/usr/bin/etcd",
                                     "--name",
                                     "m" + number_,
                                     "--data-dir",
                                     data_,
                                     "--listen-client-urls",
                                     url(options.scheme),
                                     "--advertise-client-urls",
                                     url(options.scheme),
                                     "--listen-peer-urls",
                                     "http://" + address() + ":2380",
                                     "--initial-advertise-peer-urls",
                                     "http://" + address() + ":2380",
                                     "--initial-cluster",
                                     options.cluster.empty() ? peer() : options.cluster,
                                     "--logger",
                                     "zap",
                                     "--log-outputs",
                                     "stderr"};
    command.insert(command.end(), options.more.begin(), options.more.end());
    process_.reset();
    process_.emplace(SpawnOptions{.command = command, .network = &network_});
  }
  void wait() {
    if (!process_->wait_for_output("serving client traffic", std::chrono::seconds(60))) {
      throw std::runtime_error("etcd did not start: " + process_->output());
    }
  }
  void start(const EtcdMemberOptions& options = {}) {
    launch(options);
    wait();
  }
  void kill() { process_.reset(); }
  void restart() { start(options_); }
  /// Neither reads nor answers, or goes on.
  void stop() { process_->signal(SIGSTOP); }
  void resume() { process_->signal(SIGCONT); }

  /// What etcdctl with these arguments prints.
  std::string control(std::vector<std::string> arguments) const {
    std::vector<std::string> command{"/usr/bin/env", "ETCDCTL_API=3", "/usr/bin/etcdctl",
                                     "--endpoints=" + url(options_.scheme)};
    command.insert(command.end(), arguments.begin(), arguments.end());
    return run_command(&network_, command);
  }

 private:
  const NetworkNamespace& network_;
  const std::string number_;
  const std::string data_;
  EtcdMemberOptions options_;
  std::optional<Process> process_;
};

class EtcdTest : public testing::Test {
 protected:
  void SetUp() override {
    PORTWAY_NEEDS(why_no_namespaces());
    PORTWAY_NEEDS(why_no_etcd());
    network_.emplace();
    home_.reset(::open("/proc/thread-self/ns/net", O_RDONLY | O_CLOEXEC));
    if (!home_ || ::setns(network_->fd(), CLONE_NEWNET) != 0) {
      throw std::system_error(errno, std::generic_category(), "setns");
    }
  }
  void TearDown() override {
    etcd_.reset();
    if (home_) ::setns(home_.get(), CLONE_NEWNET);
  }

  EtcdMember& add_member() {
    members_.push_back(
        std::make_unique<EtcdMember>(*network_, directory_, static_cast<int>(members_.size()) + 1));
    return *members_.back();
  }
  EtcdMember& start_one(const EtcdMemberOptions& options = {}) {
    EtcdMember& member = add_member();
    member.start(options);
    return member;
  }
  void start_cluster(int size) {
    for (int i = 0; i < size; ++i) add_member();
    EtcdMemberOptions options;
    for (const auto& member : members_)
      options.cluster += (options.cluster.empty() ? "" : ",") + member->peer();
    for (const auto& member : members_) member->launch(options);
    for (const auto& member : members_) member->wait();
  }

  /// Patient: other work may have the machine.
  EtcdOptions options() const {
    EtcdOptions out;
    for (const auto& member : members_) out.endpoints.push_back(member->url());
    out.connect_timeout = std::chrono::seconds(20);
    out.request_timeout = std::chrono::seconds(60);
    return out;
  }
  std::unique_ptr<Etcd> make(EtcdOptions options) {
    return Etcd::create(context_.get_executor(), std::move(options)).value();
  }
  Etcd& etcd() {
    if (etcd_ == nullptr) etcd_ = make(options());
    return *etcd_;
  }

  template <class Value>
  Value wait(boost::asio::awaitable<Value> what) {
    return run(context_, std::move(what));
  }
  /// The answer of a call that must succeed.
  template <class Value>
  Value done(boost::asio::awaitable<EtcdResult<Value>> call) {
    auto result = wait(std::move(call));
    if (!result) {
      throw std::runtime_error(std::string(to_string(result.error().kind)) + ": " + result.error().detail);
    }
    return std::move(*result);
  }
  /// The answer of a call that is made again while the members have no leader, which they may not have for a
  /// second or more after one of them was lost.
  template <class Call>
  auto done_once_led(const Call& call) {
    for (;;) {
      auto result = wait(call());
      if (result) return std::move(*result);
      const EtcdError& error = result.error();
      if (error.kind != EtcdErrorKind::kUnreachable && error.kind != EtcdErrorKind::kUnknownOutcome) {
        throw std::runtime_error(std::string(to_string(error.kind)) + ": " + error.detail);
      }
    }
  }
  /// The error of a call that must fail.
  template <class Value>
  EtcdError failed(boost::asio::awaitable<EtcdResult<Value>> call) {
    auto result = wait(std::move(call));
    if (result) throw std::runtime_error("the call has succeeded");
    return result.error();
  }
  std::int64_t put(const std::string& key, const std::string& value = "",
                   EtcdLease lease = EtcdLease::kNone) {
    return done(etcd().put({.key = key, .value = value, .lease = lease})).header.revision;
  }
  /// The next events, however often the stream is opened, and through endpoints that fail.
  EtcdEvents next_events(EtcdWatch& watch) {
    for (;;) {
      auto batch = wait(watch.next());
      if (batch && !batch->events.empty()) return std::move(*batch);
      if (!batch && batch.error().kind != EtcdErrorKind::kUnreachable &&
          batch.error().kind != EtcdErrorKind::kTimeout) {
        throw std::runtime_error(std::string(to_string(batch.error().kind)) + ": " + batch.error().detail);
      }
    }
  }

  TemporaryDirectory directory_;
  std::optional<NetworkNamespace> network_;
  Fd home_;
  boost::asio::io_context context_{1};
  std::vector<std::unique_ptr<EtcdMember>> members_;
  std::unique_ptr<Etcd> etcd_;
};

}  // namespace portway::test
