#include "core/data/maker_shapes.h"

#include "core/base/base.h"

static const char *const names_en[] = {
    "Anna", "Ben",  "Carla", "David", "Emma", "Felix", "Grace", "Henry", "Iris", "Jack", "Kate", "Leo",
    "Mia",  "Noah", "Olga",  "Paul",  "Rosa", "Sam",   "Tina",  "Uma",   "Vera", "Will", "Yara", "Zack",
};
static const char *const objects_en[] = {
    "apples", "books",   "marbles", "stickers", "pencils", "cookies", "shells", "balloons", "coins",   "cards",
    "eggs",   "oranges", "toys",    "stamps",   "buttons", "beads",   "pears",  "flowers",  "candles", "badges",
};
static const char *const names_zh[] = {
    "小明", "小红", "小华", "小丽", "小刚", "小芳", "小军", "小玲", "小强", "小燕", "小杰", "小雪",
    "小伟", "小梅", "小龙", "小兰", "小东", "小琴", "小波", "小云", "小宇", "小月", "小林", "小雨",
};
static const char *const objects_zh[] = {
    "苹果", "橙子", "气球", "面包", "玩具", "鸡蛋", "贝壳", "包子", "梨",   "桃子",
    "篮球", "杯子", "饺子", "橘子", "风筝", "盘子", "徽章", "书包", "土豆", "西红柿",
};

static const gr_shape en_1[] = {
    {"{N} has {a} {o} and buys {b} more. How many {o} does {N} have now?", "a+b"},
    {"{N} has {a} {o} and gives {b} of them to {M}. How many {o} does {N} have left?", "a-b"},
    {"{N} fills {a} boxes with {b} {o} each. How many {o} are there in all?", "a*b"},
    {"{N} shares {a} {o} equally among {b} friends. How many {o} does each friend get?", "a/b"},
    {"There are {a} {o} and {b} {p} on a table. How many things are on the table?", "a+b"},
    {"{N}'s shop had {a} {o} in the morning and sold {b} of them. How many {o} are left?", "a-b"},
    {"A box of {o} costs {a} dollars. How many dollars does {N} pay for {b} boxes?", "a*b"},
    {"{N} puts {a} {o} into bags of {b}. How many bags does {N} fill?", "a/b"},
    {"{N} read {a} pages about {o} on Monday and {b} pages on Tuesday. How many pages did {N} read in total?", "a+b"},
    {"{N} needs {a} {o} and already has {b}. How many more {o} does {N} need?", "a-b"},
    {"{N} carries {o} for {a} kilometres every day. How many kilometres is that in {b} days?", "a*b"},
    {"{N} found {a} {o} and {M} found {b}. How many more {o} did {N} find than {M}?", "a-b"},
    {"In {N}'s class, {a} pupils make {b} equal teams to count {o}. How many pupils are in each team?", "a/b"},
    {"{N} paid {a} dollars for {b} {o} of the same price. How many dollars did each one cost?", "a/b"},
    {"{N} collected {a} {o}. {M} collected {b} more than {N}. How many {o} did {M} collect?", "a+b"},
    {"{M} has {b} times as many {o} as {N}, who has {a}. How many {o} does {M} have?", "a*b"},
};
static const gr_shape en_2[] = {
    {"{N} buys {a} boxes with {b} {o} each and gives {c} {o} to {M}. How many {o} does {N} have left?", "a*b x-c"},
    {"{N} has {a} bags with {b} {o} each and finds {c} more {o}. How many {o} does {N} have now?", "a*b x+c"},
    {"{N} had {a} {o}, bought {b} more and gave {c} to {M}. How many {o} does {N} have now?", "a+b x-c"},
    {"{N} has {a} {o}. {M} has {b} times as many. How many {o} do they have together?", "a*b a+x"},
    {"{N} has {a} {o}. {M} has {b} more than {N}. How many {o} do they have together?", "a+b a+x"},
    {"{N} collected {a} {o} and {M} collected {b}. They put them all into {c} equal bags. How many {o} are in each bag?",
     "a+b x/c"},
    {"{N} had {a} dollars and bought {b} {o} for {c} dollars each. How many dollars are left?", "b*c a-x"},
    {"{N}'s shop had {a} {o}. It sold {b} in the morning and {c} in the afternoon. How many {o} are left?", "a-b x-c"},
    {"A bag of {o} costs {a} dollars. {N} buys {b} bags and {M} buys {c}. How many dollars do they pay in all?", "b+c x*a"},
    {"{N} reads {a} pages a day for {b} days. The book has {c} pages. How many pages are left?", "a*b c-x"},
    {"{N} packs {a} {o} into boxes of {b} and sells each box for {c} dollars. How many dollars does {N} get?", "a/b x*c"},
    {"{N} lays out {a} rows of {b} {o}. {M} takes {c} of them. How many {o} are left?", "a*b x-c"},
    {"{N} has {a} {o}, loses {b} and shares the rest equally among {c} friends. How many {o} does each friend get?", "a-b x/c"},
    {"{N} has {a} {o}. {M} has {b} fewer than {N}. How many {o} do they have together?", "a-b a+x"},
    {"{N} shares {a} {o} equally among {b} children. One child gets {c} more {o}. How many {o} does that child have?", "a/b x+c"},
};
static const gr_shape en_3[] = {
    {"{N} buys {a} boxes with {b} {o} each, finds {c} more and gives {d} to {M}. How many {o} does {N} have now?", "a*b x+c y-d"},
    {"{N} has {a} {o}, {M} has {b} times as many, and their friend has {c}. How many {o} do the three have?", "a*b a+x y+c"},
    {"{N} had {a} {o}, bought {b} more, gave {c} to {M} and put the rest into {d} equal bags. How many {o} are in each bag?",
     "a+b x-c y/d"},
    {"{N} buys {a} {o} for {b} dollars each and {c} {p} for {d} dollars each. How many dollars does {N} pay?", "a*b c*d x+y"},
    {"A shop had {a} {o}. It sold {b}, got {c} new ones and sold {d} more. How many {o} are left?", "a-b x+c y-d"},
    {"{N} works {a} hours a day for {b} days and {c} hours on Sunday. {M} works {d} hours less in all. How "
     "many hours does {M} work?",
     "a*b x+c y-d"},
    {"{N} shares {a} {o} equally among {b} friends. One friend gets {c} more and gives {d} away. How many "
     "{o} does this friend have?",
     "a/b x+c y-d"},
    {"{N} has {a} {o}. {M} has {b} more than {N}. They give {c} away together. How many {o} do they still have?", "a+b a+x y-c"},
    {"{N} has {a} dollars. {N} buys {b} {o} for {c} dollars each and then earns {d} dollars. How many dollars does {N} have now?",
     "b*c a-x y+d"},
    {"{N} collected {a} {o}, {M} collected {b}. They packed them into bags of {c} and sold each bag for {d} "
     "dollars. How many dollars did they get?",
     "a+b x/c y*d"},
    {"A bus starts with {a} people. {b} get off and {c} get on at the first stop, and {d} get on at the "
     "second. How many people are on the bus?",
     "a-b x+c y+d"},
    {"{N} fills {a} shelves with {b} {o} each, and {M} fills {c} shelves with {d} each. How many more {o} does {N} have than {M}?",
     "a*b c*d x-y"},
    {"{N} reads {a} pages a day for {b} days, then {c} pages. The book has {d} pages. How many pages are left?", "a*b x+c d-y"},
};

static const gr_shape zh_1[] = {
    {"{N}有{a}个{o}，又买了{b}个，现在一共有多少个{o}？", "a+b"},
    {"{N}有{a}个{o}，送给{M}{b}个，还剩多少个{o}？", "a-b"},
    {"{N}有{a}个盒子，每个盒子里有{b}个{o}，一共有多少个{o}？", "a*b"},
    {"{N}把{a}个{o}平均分给{b}个朋友，每个朋友得到多少个{o}？", "a/b"},
    {"桌上有{a}个{o}和{b}个{p}，桌上一共有多少个东西？", "a+b"},
    {"{N}的商店早上有{a}个{o}，卖出{b}个，还剩多少个{o}？", "a-b"},
    {"一个{o}{a}元，{N}买{b}个{o}需要多少元？", "a*b"},
    {"{N}有{a}个{o}，每{b}个装一袋，可以装多少袋？", "a/b"},
    {"{N}星期一卖了{a}个{o}，星期二卖了{b}个，两天一共卖了多少个？", "a+b"},
    {"{N}需要{a}个{o}，已经有{b}个，还差多少个？", "a-b"},
    {"{N}每天运{a}箱{o}，{b}天一共运多少箱？", "a*b"},
    {"{N}有{a}个{o}，{M}有{b}个，{N}比{M}多多少个？", "a-b"},
    {"{N}的班有{a}名学生，平均分成{b}组数{o}，每组多少人？", "a/b"},
    {"{N}花{a}元买了{b}个同样的{o}，每个{o}多少元？", "a/b"},
    {"{N}收集了{a}个{o}，{M}比{N}多收集{b}个，{M}收集了多少个？", "a+b"},
    {"{N}有{a}个{o}，{M}的{o}是{N}的{b}倍，{M}有多少个{o}？", "a*b"},
};
static const gr_shape zh_2[] = {
    {"{N}买了{a}盒{o}，每盒{b}个，送给{M}{c}个，还剩多少个{o}？", "a*b x-c"},
    {"{N}有{a}袋{o}，每袋{b}个，又买了{c}个，现在有多少个{o}？", "a*b x+c"},
    {"{N}有{a}个{o}，又买了{b}个，送给{M}{c}个，现在有多少个{o}？", "a+b x-c"},
    {"{N}有{a}个{o}，{M}的{o}是{N}的{b}倍，两人一共有多少个{o}？", "a*b a+x"},
    {"{N}有{a}个{o}，{M}比{N}多{b}个，两人一共有多少个{o}？", "a+b a+x"},
    {"{N}收集了{a}个{o}，{M}收集了{b}个，平均装进{c}个袋子，每袋多少个？", "a+b x/c"},
    {"{N}有{a}元，买了{b}个{o}，每个{c}元，还剩多少元？", "b*c a-x"},
    {"{N}的商店有{a}个{o}，上午卖出{b}个，下午卖出{c}个，还剩多少个？", "a-b x-c"},
    {"一袋{o}{a}元，{N}买{b}袋，{M}买{c}袋，两人一共付多少元？", "b+c x*a"},
    {"{N}每天读{a}页书，读了{b}天，这本书有{c}页，还剩多少页？", "a*b c-x"},
    {"{N}把{a}个{o}每{b}个装一盒，每盒卖{c}元，一共卖多少元？", "a/b x*c"},
    {"{N}摆了{a}排{o}，每排{b}个，{M}拿走{c}个，还剩多少个{o}？", "a*b x-c"},
    {"{N}有{a}个{o}，丢了{b}个，剩下的平均分给{c}个朋友，每人得到多少个？", "a-b x/c"},
    {"{N}有{a}个{o}，{M}比{N}少{b}个，两人一共有多少个{o}？", "a-b a+x"},
    {"{N}把{a}个{o}平均分给{b}个孩子，其中一个孩子又得到{c}个，这个孩子有多少个？", "a/b x+c"},
};
static const gr_shape zh_3[] = {
    {"{N}买了{a}盒{o}，每盒{b}个，又买了{c}个，送给{M}{d}个，现在有多少个{o}？", "a*b x+c y-d"},
    {"{N}有{a}个{o}，{M}的{o}是{N}的{b}倍，他们的朋友有{c}个，三人一共有多少个？", "a*b a+x y+c"},
    {"{N}有{a}个{o}，又买了{b}个，送给{M}{c}个，剩下的平均装进{d}个袋子，每袋多少个？", "a+b x-c y/d"},
    {"{N}买了{a}个{o}，每个{b}元，又买了{c}个{p}，每个{d}元，一共花了多少元？", "a*b c*d x+y"},
    {"{N}的商店有{a}个{o}，卖出{b}个，进货{c}个，又卖出{d}个，还剩多少个？", "a-b x+c y-d"},
    {"{N}每天工作{a}小时，工作{b}天，星期日工作{c}小时，{M}比{N}少工作{d}小时，{M}工作多少小时？", "a*b x+c y-d"},
    {"{N}把{a}个{o}平均分给{b}个朋友，其中一人又得到{c}个，再送出{d}个，这个人现在有多少个？", "a/b x+c y-d"},
    {"{N}有{a}个{o}，{M}比{N}多{b}个，两人一共送出{c}个，还剩多少个？", "a+b a+x y-c"},
    {"{N}有{a}元，买了{b}个{o}，每个{c}元，又赚了{d}元，现在有多少元？", "b*c a-x y+d"},
    {"{N}收集了{a}个{o}，{M}收集了{b}个，每{c}个装一袋，每袋卖{d}元，一共卖多少元？", "a+b x/c y*d"},
    {"公共汽车上有{a}人，第一站下车{b}人，上车{c}人，第二站上车{d}人，现在车上有多少人？", "a-b x+c y+d"},
    {"{N}有{a}盒{o}，每盒{b}个，{M}有{c}盒，每盒{d}个，{N}比{M}多多少个？", "a*b c*d x-y"},
    {"{N}每天读{a}页书，读了{b}天，又读了{c}页，这本书有{d}页，还剩多少页？", "a*b x+c d-y"},
};

const gr_shapes gr_shapes_en = {
    .of_steps = {en_1, en_2, en_3},
    .n_of_steps = {GR_LEN(en_1), GR_LEN(en_2), GR_LEN(en_3)},
    .names = names_en,
    .n_names = GR_LEN(names_en),
    .objects = objects_en,
    .n_objects = GR_LEN(objects_en),
};
const gr_shapes gr_shapes_zh = {
    .of_steps = {zh_1, zh_2, zh_3},
    .n_of_steps = {GR_LEN(zh_1), GR_LEN(zh_2), GR_LEN(zh_3)},
    .names = names_zh,
    .n_names = GR_LEN(names_zh),
    .objects = objects_zh,
    .n_objects = GR_LEN(objects_zh),
};
