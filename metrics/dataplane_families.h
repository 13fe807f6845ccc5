// The metrics of the data plane as a whole: the sums of the workers' own counters, which outlive every
// forward and never decrease.
#pragma once

#include "metrics/sink.h"
#include "proxy/stats.h"

namespace portway {

void emit_dataplane(Sink& sink, const NodeStats& node);

}  // namespace portway
