/* Predictions of a micro-batch as framed Avro records, from columns: 0.1 us a record.
 *
 * The same bytes as pyruhvro makes of the same columns under the schema of pipeline/prediction.py; that way costs 1 us a
 * record and 1 ms a batch, and is what serves where this was not built. A test holds the two equal. Field by field in the
 * schema's order: whoever adds a field there adds it here.
 */
#include <stdint.h>
#include <string.h>

typedef struct { /* strings in Arrow's layout */
    const char *data;
    const int32_t *offsets;
    const uint8_t *valid; /* bitmap, NULL: all of them are */
    int64_t first_bit;
} column;

typedef struct {
    int64_t rows;
    const char *header; /* 5 bytes */
    column constants;   /* source topic, topology, model */
    const int32_t *partitions;
    const int64_t *offsets;
    const column *event_ids; /* NULL: events have none */
    const int64_t *event_times;
    const uint8_t *has_event_time; /* a byte a row; NULL: none has one */
    const int64_t *source_timestamps; /* below 0: none */
    int64_t scored_at;
    int64_t score_count;
    column score_names;
    const double *scores; /* [rows, score_count] */
    column labels;
    const int32_t *decisions; /* below 0: none */
    column versions;
    const int32_t *version;
    const uint8_t *variant;
    column rollouts; /* null: none */
    const int32_t *rollout;
    const int64_t *control_epochs;
    const uint8_t *reason;
    int64_t view_count;
    column view_names;
    const uint8_t *statuses; /* [rows, view_count] */
} predictions;

enum { TOPIC, TOPOLOGY, MODEL };

static char *put_long(char *to, int64_t value) {
    uint64_t left = ((uint64_t)value << 1) ^ (uint64_t)(value >> 63);
    for (; left > 0x7f; left >>= 7) *to++ = (char)(left | 0x80);
    *to++ = (char)left;
    return to;
}

static char *put_bytes(char *to, const char *data, int64_t size) {
    to = put_long(to, size);
    if (size) memcpy(to, data, size);
    return to + size;
}

static char *put_text(char *to, const column *from, int64_t place) {
    int32_t start = from->offsets[place];
    return put_bytes(to, from->data + start, from->offsets[place + 1] - start);
}

/* The unions of this schema are all ["null", something]. */
static char *put_optional_text(char *to, const column *from, int64_t place) {
    int64_t bit = from->first_bit + place;
    if (place < 0 || (from->valid && !(from->valid[bit / 8] >> (bit % 8) & 1))) return put_long(to, 0);
    return put_text(put_long(to, 1), from, place);
}

static char *put_optional_long(char *to, int there, int64_t value) {
    return there ? put_long(put_long(to, 1), value) : put_long(to, 0);
}

static char *decimal(char *to, int64_t value) { /* of what is not negative */
    char digits[20];
    int count = 0;
    do digits[count++] = (char)('0' + value % 10);
    while (value /= 10);
    while (count) *to++ = digits[--count];
    return to;
}

static char *put_id(char *to, const predictions *of, int64_t row) {
    char id[20 + 1 + 20 + 1], *end = id;
    const column *names = &of->constants;
    int32_t topic = names->offsets[TOPIC + 1] - names->offsets[TOPIC];
    *end++ = '-';
    end = decimal(end, of->partitions[row]);
    *end++ = '-';
    end = decimal(end, of->offsets[row]);
    to = put_long(to, topic + (end - id));
    memcpy(to, names->data + names->offsets[TOPIC], topic);
    memcpy(to + topic, id, end - id);
    return to + topic + (end - id);
}

static char *put_scores(char *to, const predictions *of, int64_t row) {
    if (of->score_count) to = put_long(to, of->score_count);
    for (int64_t i = 0; i < of->score_count; i++) {
        to = put_text(to, &of->score_names, i);
        memcpy(to, of->scores + row * of->score_count + i, sizeof(double));
        to += sizeof(double);
    }
    return put_long(to, 0);
}

static char *put_statuses(char *to, const predictions *of, int64_t row) {
    if (of->view_count) to = put_long(to, of->view_count);
    for (int64_t i = 0; i < of->view_count; i++) {
        to = put_text(to, &of->view_names, i);
        to = put_long(to, of->statuses[row * of->view_count + i]);
    }
    return put_long(to, 0);
}

static char *put_record(char *to, const predictions *of, int64_t row) {
    memcpy(to, of->header, 5);
    to = put_id(to + 5, of, row);
    to = put_text(to, &of->constants, TOPOLOGY);
    to = of->event_ids ? put_optional_text(to, of->event_ids, row) : put_long(to, 0);
    to = put_optional_long(to, of->has_event_time && of->has_event_time[row], of->event_times[row]);
    to = put_optional_long(to, of->source_timestamps[row] >= 0, of->source_timestamps[row]);
    to = put_long(to, of->scored_at);
    to = put_scores(to, of, row);
    to = put_optional_text(to, &of->labels, of->decisions[row]);
    to = put_text(to, &of->constants, MODEL);
    to = put_text(to, &of->versions, of->version[row]);
    to = put_long(to, of->variant[row]);
    to = put_optional_text(to, &of->rollouts, of->rollout[row]);
    to = put_long(to, of->control_epochs[row]);
    to = put_long(to, of->reason[row]);
    return put_statuses(to, of, row);
}

/* Writes every record into `data`, which must be large enough, and where each begins into `starts` [rows + 1]. */
void encode_predictions(const predictions *of, char *data, int32_t *starts) {
    char *at = data;
    for (int64_t row = 0; row < of->rows; row++) {
        starts[row] = (int32_t)(at - data);
        at = put_record(at, of, row);
    }
    starts[of->rows] = (int32_t)(at - data);
}
