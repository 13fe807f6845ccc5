// What each connection or request does once or a few times: deadlines, limits, source addresses, JSON.
#include <benchmark/benchmark.h>

#include <boost/json/serialize.hpp>

#include "api/http/message.h"
#include "api/json.h"
#include "api/json_fields.h"
#include "network/proxy_header.h"
#include "network/source_plan.h"
#include "proxy/admission.h"
#include "proxy/timer_wheel.h"

namespace portway {
namespace {

using namespace std::chrono_literals;

void SetAndClearADeadline(benchmark::State& state) {
  TimerWheel wheel(1s);
  const auto others = static_cast<std::uint32_t>(state.range(0));
  for (std::uint32_t i = 0; i < others; ++i) wheel.set(i, 1s + std::chrono::milliseconds(i % 10'000));
  for (auto _ : state) {
    wheel.set(others, 6s);
    wheel.clear(others);
  }
}
BENCHMARK(SetAndClearADeadline)->Arg(0)->Arg(100'000);

void AdmitAClientUnderALimitPerSource(benchmark::State& state) {
  Admission admission;
  admission.set_limits({.allowed_cidrs = {}, .max_connections_per_source = 10});
  const IpAddress client = boost::asio::ip::make_address("203.0.113.9");
  for (auto _ : state) {
    benchmark::DoNotOptimize(admission.ask(client, 1s));
    admission.leave(client);
  }
}
BENCHMARK(AdmitAClientUnderALimitPerSource);

void PlanASourceAddress(benchmark::State& state) {
  const Endpoint client(boost::asio::ip::make_address("203.0.113.9"), 40000);
  const Endpoint guest(boost::asio::ip::make_address("198.19.0.2"), 3000);
  for (auto _ : state) benchmark::DoNotOptimize(plan_source(client, guest));
}
BENCHMARK(PlanASourceAddress);

void MakeAProxyHeader(benchmark::State& state) {
  const Endpoint client(boost::asio::ip::make_address("203.0.113.9"), 40000);
  const Endpoint node(boost::asio::ip::make_address("198.51.100.1"), 20000);
  for (auto _ : state) benchmark::DoNotOptimize(proxy_header(client, node));
}
BENCHMARK(MakeAProxyHeader);

void ReadAForwardRequest(benchmark::State& state) {
  Request request;
  request.headers["content-type"] = "application/json";
  request.body = R"({"guest_port": 3000, "protocol": "tcp", "label": "dev-server"})";
  for (auto _ : state) {
    JsonFields fields(request);
    benchmark::DoNotOptimize(fields.integer("guest_port", 1, 65535));
    benchmark::DoNotOptimize(fields.string_or("protocol", "tcp"));
    benchmark::DoNotOptimize(fields.string_or("label", ""));
    benchmark::DoNotOptimize(fields.finish());
  }
}
BENCHMARK(ReadAForwardRequest);

void WriteAForward(benchmark::State& state) {
  ForwardStatus status;
  status.forward.id = make_uuid();
  status.forward.instance_id = "vm-1";
  status.forward.label = "dev-server";
  for (auto _ : state) benchmark::DoNotOptimize(boost::json::serialize(to_json(status)));
}
BENCHMARK(WriteAForward);

}  // namespace
}  // namespace portway
