// The metrics as Prometheus itself takes them: promtool's rules, a real server that scrapes the daemon, and
// its answers compared with what client and guest counted.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <boost/json.hpp>
#include <chrono>
#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iomanip>
#include <regex>
#include <set>
#include <sstream>
#include <thread>

#include "tests/e2e/daemon.h"
#include "tests/e2e/guest_network.h"
#include "tests/support/guest_ports.h"
#include "tests/support/requirements.h"
#include "tests/support/tcp_client.h"
#include "tests/support/temporary_directory.h"

namespace portway::test {
namespace {

using std::chrono::seconds;

std::string why_no_prometheus() {
  for (const char* program : {"/usr/bin/prometheus", "/usr/bin/promtool"}) {
    if (!std::filesystem::exists(program))
      return std::string(program) + " is missing: ./install-packages.sh test";
  }
  return why_no_namespaces();
}

std::string read_file(const std::filesystem::path& path) {
  std::ifstream file(path);
  return std::string(std::istreambuf_iterator<char>(file), {});
}

class PrometheusTest : public testing::Test {
 protected:
  void SetUp() override {
    PORTWAY_NEEDS(why_no_prometheus());
    network_ = std::make_unique<GuestNetwork>(GuestKind::kVeth);
    start();
  }

  /// `more`: of its configuration.
  void start(const std::string& more = "") {
    daemon_.reset();
    daemon_ = std::make_unique<Daemon>(
        *network_,
        DaemonOptions{.proxy = "refused_probe_ms = 0\n" + more});  // every client's refusal is counted
    daemon_->put_instance("vm-1");
  }

  TcpClient connect_to(const CreatedForward& forward) {
    return TcpClient(network_->client(), kHostAddress, forward.host_port);
  }

  std::unique_ptr<GuestNetwork> network_;
  std::unique_ptr<Daemon> daemon_;
};

/// A Prometheus server in the host's namespace, which scrapes the daemon with its admin key.
class Prometheus {
 public:
  Prometheus(const NetworkNamespace& network, const std::filesystem::path& admin_key_file)
      : network_(network) {
    const std::filesystem::path config = directory_.path() / "prometheus.yml";
    std::ofstream(config) << "scrape_configs:\n"
                             "  - job_name: portway\n"
                             "    scrape_interval: 200ms\n"
                             "    scrape_timeout: 200ms\n"
                             "    authorization: {credentials_file: "
                          << admin_key_file.string()
                          << "}\n"
                             "    static_configs: [{targets: ['127.0.0.1:8080']}]\n";
    // The namespace is the test's own: no port in it can be taken.
    process_ = std::make_unique<Process>(
        SpawnOptions{.command = {"/usr/bin/prometheus", "--config.file=" + config.string(),
                                 "--storage.tsdb.path=" + (directory_.path() / "data").string(),
                                 "--web.listen-address=127.0.0.1:" + std::to_string(kPort)},
                     .network = &network_});
    if (!process_->wait_for_output("Server is ready to receive web requests", seconds(60)))
      throw std::runtime_error("prometheus did not start: " + process_->output());
  }

  /// The instant query's only value; nullopt if there is none.
  std::optional<double> query(const std::string& expression) {
    std::ostringstream target;
    target << "/api/v1/query?query=" << std::hex << std::uppercase << std::setfill('0');
    for (const unsigned char c : expression) target << '%' << std::setw(2) << static_cast<int>(c);
    const HttpResponse response = http_request(network_, "127.0.0.1", kPort, {.target = target.str()});
    if (response.status != 200) throw std::runtime_error(expression + ": " + response.body);
    const boost::json::value answer = response.json();
    const boost::json::array& result = answer.at("data").at("result").as_array();
    if (result.size() != 1) return std::nullopt;
    return std::stod(std::string(result.front().at("value").at(1).as_string()));
  }

  /// Queries until the answer is `value`: a scrape has to come first.
  void expect(const std::string& expression, double value) {
    const auto deadline = std::chrono::steady_clock::now() + seconds(30);
    std::optional<double> answer;
    while ((answer = query(expression)) != value && std::chrono::steady_clock::now() < deadline)
      std::this_thread::sleep_for(std::chrono::milliseconds(50));
    EXPECT_THAT(answer, testing::Optional(value)) << expression;
  }

 private:
  static constexpr std::uint16_t kPort = 9090;

  const NetworkNamespace& network_;
  TemporaryDirectory directory_;
  std::unique_ptr<Process> process_;
};

TEST_F(PrometheusTest, FindsEveryByteAndConnectionThatClientAndGuestCounted) {
  const CreatedForward digest = daemon_->create_forward("vm-1", kDigestPort);
  const CreatedForward source = daemon_->create_forward("vm-1", kSourcePort);
  const CreatedForward closed = daemon_->create_forward("vm-1", kClosedPort);
  Prometheus prometheus(network_->host(), daemon_->directory() / "admin.key");

  constexpr std::uint64_t kUploadBytes = 3'000'001;
  constexpr int kUploads = 7;
  std::uint64_t answered_bytes = 0;
  for (int i = 0; i < kUploads; ++i) {
    TcpClient client = connect_to(digest);
    client.send_pattern(kUploadBytes);
    client.finish();
    const Received answer = client.receive_to_end();
    EXPECT_THAT(answer.bytes, testing::StartsWith(std::to_string(kUploadBytes) + " "))
        << "the guest's own count";
    answered_bytes += answer.bytes.size();
  }
  constexpr std::uint64_t kDownloadBytes = 20'000'003;
  TcpClient client = connect_to(source);
  const std::string request = std::to_string(kDownloadBytes) + "\n";
  client.send(request);
  EXPECT_EQ(client.receive_digest_to_end().bytes, kDownloadBytes);
  client.finish();
  for (int i = 0; i < 3; ++i) connect_to(closed).receive_to_end();

  const auto of = [](const CreatedForward& forward) { return "{forward=\"" + forward.id + "\"}"; };
  prometheus.expect("portway_forward_received_bytes_total" + of(digest), kUploads * kUploadBytes);
  prometheus.expect("portway_forward_sent_bytes_total" + of(digest), static_cast<double>(answered_bytes));
  prometheus.expect("portway_forward_received_bytes_total" + of(source), static_cast<double>(request.size()));
  prometheus.expect("portway_forward_sent_bytes_total" + of(source), kDownloadBytes);
  prometheus.expect("sum(portway_forward_connections_total{result=\"established\"})", kUploads + 1);
  prometheus.expect("sum(portway_forward_connections_total{result=\"failed\"})", 3);
  prometheus.expect("portway_forward_connect_errors_total{reason=\"refused\"}", 3);
  prometheus.expect("portway_connections_closed_total{side=\"client\",how=\"fin\"}", kUploads);
  prometheus.expect("portway_connections_closed_total{side=\"guest\",how=\"fin\"}", 1);
  prometheus.expect("portway_connections_closed_total{side=\"guest\",how=\"refused\"}", 3);
  prometheus.expect("sum(portway_connections_closed_total)", kUploads + 4);
  prometheus.expect("portway_connections_active", 0);
  prometheus.expect(
      "portway_bytes_spliced_total + portway_bytes_copied_total",
      static_cast<double>(kUploads * kUploadBytes + kDownloadBytes + answered_bytes + request.size()));
  prometheus.expect("portway_connect_duration_seconds_count", kUploads + 1);
  prometheus.expect("portway_connection_duration_seconds_count", kUploads + 4);
  prometheus.expect("histogram_quantile(1, portway_connection_duration_seconds_bucket) > bool 0", 1);
  // The join that the info metric's help text shows.
  prometheus.expect(
      "portway_forward_sent_bytes_total * on(forward) group_left(label, instance_id) "
      "portway_forward_info{guest_port=\"" +
          std::to_string(kSourcePort) + "\"}",
      kDownloadBytes);
  prometheus.expect("up{job=\"portway\"}", 1);
  EXPECT_EQ(prometheus.query("scrape_samples_post_metric_relabeling == scrape_samples_scraped").has_value(),
            true);

  EXPECT_EQ(daemon_->api("DELETE", "/instances/vm-1/port-forwards/" + source.id).status, 204);
  prometheus.expect("absent(portway_forward_info" + of(source) + ")", 1);
  EXPECT_EQ(daemon_->stop(SIGTERM), 0);
}

TEST_F(PrometheusTest, HasNoComplaintAboutNamesAndHelps) {
  connect_to(daemon_->create_forward("vm-1", kClosedPort)).receive_to_end();
  const TemporaryDirectory directory;
  const std::filesystem::path file = directory.path() / "metrics";
  std::ofstream(file) << daemon_->api("GET", "/metrics").body;
  EXPECT_EQ(run_command(nullptr, {"/bin/sh", "-c", "promtool check metrics < " + file.string() + " 2>&1"}),
            "");
}

TEST_F(PrometheusTest, FindsTheMetricsThatTheReferenceNamesAndNoOthers) {
  start("[fleet]\netcd = [\"http://127.0.0.1:1\"]\n");  // a node in a fleet has some more; nobody is there
  connect_to(daemon_->create_forward("vm-1", kClosedPort)).receive_to_end();
  ASSERT_TRUE(daemon_->wait_for_metric("portway_connections_active", {}, 0));
  std::set<std::string> told;
  for (const auto& [name, family] : daemon_->metrics().families) told.insert(name);
  std::set<std::string> documented;
  const std::string reference = read_file(PORTWAY_SOURCE_DIRECTORY "/metrics/metrics.md");
  const std::regex row("\n\\| `([a-z_]+)` \\|");
  for (std::sregex_iterator it(reference.begin(), reference.end(), row), end; it != end; ++it)
    documented.insert((*it)[1]);
  EXPECT_EQ(told, documented);
}

}  // namespace
}  // namespace portway::test
