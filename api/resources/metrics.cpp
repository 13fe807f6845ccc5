// GET /metrics: a scrape, in pieces, compressed for those who accept gzip.

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "api/http/gzip.h"
#include "api/resources.h"

namespace portway {
namespace {

// A compressed piece has at least as many bytes, except for the last one.
constexpr std::size_t kZippedPiece = 8 * 1024;

const auto kScope = choice_parameter<MetricsScope>(
    "scope",
    {{"all", MetricsScope::kAll}, {"node", MetricsScope::kNode}, {"forwards", MetricsScope::kForwards}},
    ErrorCode::kMalformedRequest);

NextPiece zipped(NextPiece pieces, std::shared_ptr<Gzip> zip) {
  return [pieces = std::move(pieces), zip = std::move(zip), ended = false]() mutable {
    std::string out;
    while (!ended && out.size() < kZippedPiece) {
      const std::string piece = pieces();
      ended = piece.empty();
      out += zip->add(piece);
    }
    return out;
  };
}

Result<Response> metrics(const ApiContext& api, const Call& call) {
  Response response{.status = 200,
                    .body = {},
                    .content_type = std::string(Exporter::kContentType),
                    .headers = {{"Vary", "Accept-Encoding"}},
                    .pieces = api.metrics(call.query[kScope])};
  if (!accepts_gzip(call.request.header("accept-encoding"))) return response;
  if (std::shared_ptr<Gzip> zip = Gzip::start()) {
    response.pieces = zipped(std::move(response.pieces), std::move(zip));
    response.headers.emplace_back("Content-Encoding", "gzip");
  }
  return response;
}

}  // namespace

std::vector<NodeRoute> metrics_routes() {
  return {{"GET", "/metrics", Access::kMetrics, {kScope}, metrics, kHighCost}};
}

}  // namespace portway
