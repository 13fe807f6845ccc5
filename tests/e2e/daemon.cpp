#include "tests/e2e/daemon.h"

#include <gtest/gtest.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <unistd.h>

#include <boost/json/value.hpp>
#include <csignal>
#include <fstream>
#include <iostream>
#include <stdexcept>
#include <system_error>
#include <thread>

namespace portway::test {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using std::chrono::steady_clock;

constexpr const char* kApiAddress = "127.0.0.1";
constexpr std::uint16_t kApiPort = 8080;

std::filesystem::path make_directory() {
  std::string path = std::filesystem::temp_directory_path() / "portway-e2e-XXXXXX";
  if (mkdtemp(path.data()) == nullptr) throw std::system_error(errno, std::generic_category(), "mkdtemp");
  return path;
}

void write_file(const std::filesystem::path& directory, const DaemonOptions& options,
                const std::string& profiles) {
  std::ofstream file(directory / "portway.toml");
  file << "[node]\npublic_hostname = \"" << Daemon::kHostname << "\"\npublic_addresses = [\"" << kHostAddress
       << "\", \"" << kHostAddress6 << "\"]\n"
       << "[api]\nlisten = \"" << kApiAddress << ":" << kApiPort
       << "\"\nrate_limit_per_second = 0\nadmin_key_file = " << directory / "admin.key"
       << "\n"
       << "[guests]\nnetworks = [\"198.19.0.0/16\", \"169.254.0.0/24\", \"fd00:19::/64\", \"fe80::/64\"]\n"
       << "netns_directories = [" << directory / "netns"
       << "]\n"
       << "[store]\npath = " << directory / "store" / "portway.db"
       << "\n"
       << "[proxy]\nworkers = 2\nio_backend = \"" << options.io_backend
       << "\"\nconnect_timeout_ms = " << options.connect_timeout_ms << "\n"
       << options.proxy << profiles;
  if (options.access_log)
    file << "[log]\naccess = " << directory / "access.log"
         << "\n";
  if (!file.flush()) throw std::runtime_error("cannot write the daemon's config");
}

}  // namespace

Daemon::Daemon(const GuestNetwork& network, const DaemonOptions& options)
    : network_(network), options_(options), directory_(make_directory()) {
  std::filesystem::create_directory(directory_ / "store");
  std::filesystem::create_directory(directory_ / "netns");
  write_config("");
  start();
}

Daemon::~Daemon() {
  // A thread was refused a system call that its list lacks (daemon/privileges/allowed_calls.h).
  EXPECT_EQ(process_->output().find("error seccomp: "), std::string::npos) << process_->output();
  if (testing::Test::HasFailure()) std::cerr << "--- portwayd printed:\n" << process_->output() << "---\n";
  // Its keeper first, which would wait for another one.
  const std::string pid = std::to_string(process_->pid());
  std::ifstream children("/proc/" + pid + "/task/" + pid + "/children");
  for (pid_t child = 0; children >> child;) ::kill(child, SIGKILL);
  process_.reset();
  std::filesystem::remove_all(directory_);
}

std::filesystem::path Daemon::store_directory() const {
  // The store's disk may be mounted in the daemon's own mount namespace only.
  return "/proc/" + std::to_string(process_->pid()) + "/root" + (directory_ / "store").string();
}

void Daemon::start() {
  process_ = std::make_unique<Process>(
      SpawnOptions{.command = {PORTWAY_DAEMON, "--config", directory_ / "portway.toml"},
                   .network = &network_.host(),
                   .deny_io_uring = options_.deny_io_uring,
                   .deny_pidfd = options_.deny_pidfd,
                   .no_capabilities = options_.no_capabilities,
                   .hide_proc = options_.hide_proc,
                   .tmpfs_path = options_.store_disk_bytes > 0 ? (directory_ / "store").string() : "",
                   .tmpfs_bytes = options_.store_disk_bytes});
  if (!process_->wait_for_output("listens on http://", seconds(30))) {
    throw std::runtime_error("portwayd did not start: " + process_->output());
  }
}

void Daemon::start(const DaemonOptions& options) {
  options_ = options;
  start();
}

void Daemon::write_config(const std::string& profiles) {
  write_file(directory_, options_, profiles);
}

std::optional<int> Daemon::stop(int signal) {
  process_->signal(signal);
  return process_->wait(seconds(30));
}

void Daemon::upgrade() {
  ::prctl(PR_SET_CHILD_SUBREAPER,
          1);  // the next process becomes this one's child when the one before has ended
  const auto ended = stop(SIGUSR2);
  const std::string output = process_->output();
  const std::string said = "upgrade: process ";
  const std::size_t at = output.rfind(said);
  if (ended != 0 || at == std::string::npos) throw std::runtime_error("portwayd was not upgraded: " + output);
  process_->adopt(std::stoi(output.substr(at + said.size())));
}

HttpResponse Daemon::api(const std::string& method, const std::string& target, const std::string& body,
                         const std::string& key) {
  std::string admin_key;
  std::ifstream(directory_ / "admin.key") >> admin_key;
  return http_request(
      network_.host(), kApiAddress, kApiPort,
      {.method = method, .target = target, .key = key.empty() ? admin_key : key, .body = body});
}

void Daemon::put_instance(const std::string& id, const std::string& guest_address, const std::string& tap) {
  const HttpResponse response =
      api("PUT", "/instances/" + id,
          R"({"guest_address": ")" + guest_address + R"(", "tap": ")" + tap + R"(", "owner": "acme"})");
  if (response.status / 100 != 2) throw std::runtime_error("PUT /instances/" + id + ": " + response.body);
}

CreatedForward Daemon::create_forward(const std::string& instance_id, std::uint16_t guest_port,
                                      const std::string& source_mode) {
  const HttpResponse response =
      api("POST", "/instances/" + instance_id + "/port-forwards",
          R"({"guest_port": )" + std::to_string(guest_port) +
              R"(, "protocol": "tcp", "label": "dev-server", "source_mode": ")" + source_mode + R"("})");
  if (response.status != 201) throw std::runtime_error("POST a port forward: " + response.body);
  const boost::json::value forward = response.json().at("port_forward");
  return {.id = std::string(forward.at("id").as_string()),
          .instance_id = instance_id,
          .host_port = forward.at("host_port").to_number<std::uint16_t>()};
}

ParsedText Daemon::metrics() {
  return parse_text_format(api("GET", "/metrics").body);
}

bool Daemon::wait_for_metric(const std::string& name, const SampleLabels& labels, double value) {
  const auto deadline = steady_clock::now() + seconds(10);
  while (metrics().value(name, labels) != value) {
    if (steady_clock::now() > deadline) return false;
    std::this_thread::sleep_for(milliseconds(10));  // nothing reports when a scrape's answer changes
  }
  return true;
}

}  // namespace portway::test
