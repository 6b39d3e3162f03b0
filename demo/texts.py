"""Every sentence the demo model is trained on, written for it, so that the weights derive from nobody else's text."""

STORY_EN = """\
Marta had kept the lighthouse at Gull Point for thirty-one years, and she knew every sound it made. She knew the sigh \
of the stairs, the tick of the brass clock, and the low hum of the lamp when it was well fed with oil.

One evening in late October the sea went quiet. The gulls walked inland, and the sky behind the islands turned the \
colour of slate. Marta wrote in her book: wind from the north, glass falling, all boats home but one. The missing \
boat was the Heron, with two brothers aboard.

By nine o'clock the storm had arrived. Rain struck the windows like gravel, and spray climbed higher than the \
gallery. Near midnight a wave broke the outer door. Marta pushed a table against the gap, packed the edges with \
sailcloth, and went back up to the light. Then the clockwork that turned the lens \
gave a groan and stopped.

A still lamp could be taken for a house on the shore, so she put both hands on the iron frame and began to walk. \
Round and round she went, counting under her breath, keeping the beam to its proper time. Her arms burned. She \
hummed old songs so that she would not sleep.

Shortly before dawn she saw it: a small yellow spark, rising and dropping beyond the reef. It swung left, then \
right, then turned toward the harbour mouth as if someone had taken it by the hand.

When morning came, pale and washed clean, two tired men climbed the path with a basket of bread. They said they had \
lost the compass and the mast, but never the light. Marta only nodded, poured the tea, and opened her book. Storm \
over, she wrote. All boats home."""

STORY_ZH = """\
海边的小镇上有一座旧灯塔，塔里住着一位姓陈的老人。年轻时他是水手，走过许多港口，后来腿受了伤，便留在这里看灯。四十年过去，\
镇上的孩子都叫他灯塔爷爷。

每天黄昏，老人沿着石阶慢慢往上走。他擦亮玻璃，添满灯油，再把当天的风向和潮水记在本子上。做完这些，他就坐在窗前喝一杯热茶，\
看远处的渔船一条接一条地回来。

有一年冬天，上面来了通知，说新的航标已经建好，旧灯塔不必再点了。老人没有说话，只是把那封信折好，放进抽屉。那天夜里忽然起了大雾，\
新航标的电线又被狂风吹断，海面漆黑一片。老人听见雾里传来汽笛的声音，立刻披上棉衣，扶着墙爬到塔顶，划亮了火柴。

灯光穿过浓雾，像一只伸向大海的手。三艘船顺着光，平安地进了港。船长们上岸以后，什么也没说，只是一起朝灯塔深深地鞠了一躬。

第二年春天，大家凑钱修好了灯塔，还在门口立了一块木牌，写着：有人守着，海就不黑。老人看了，笑着说字写得不错，\
然后转身上楼，又去擦他的玻璃了。"""

ESSAY_EN = """\
The market opens before the sun does. Carts roll in from the hills with apples, onions and jars of dark honey, and \
the bakers set out loaves that are still too warm to cut. Nobody shouts yet. People greet one another in low voices \
and drink coffee from tin cups.

At seven the first buyers come. An old man chooses three pears, weighing each in his palm as though it held a secret. \
A girl counts coins for a bunch of yellow flowers. Under the arcade a repairer of clocks spreads his tools on a green \
cloth, and children stop to watch the tiny wheels.

By noon the square is loud and bright, and the prices begin to fall. What has not been sold is traded: a cheese for a \
basket, a basket for a story. When the bells ring two, brooms appear, and within an hour only a few leaves are left \
on the stones. Tomorrow it will all happen again, and it will not be the same."""

ESSAY_ZH = """\
山里的清晨来得很早。鸡叫第一声的时候，奶奶已经生好了火，锅里的米粥冒着白气。推开木门，露水打湿了鞋，竹林那边传来溪水的声音。

采茶的人三三两两走上山坡，背着竹篓，说着昨晚的梦。嫩芽要趁太阳没出来时摘，手要轻，眼要快。等到篓子装满，雾也散了，\
远处的田野像一幅刚画好的画。

中午，新茶在铁锅里慢慢炒干，香味飘满整个院子。爷爷泡上一壶，先敬客人，再给自己倒半杯。他常说，好茶不用多讲，喝一口就明白了。"""

HELP_EN = (
    "I am a small demo model, trained from scratch to test a deployment. "
    "I can do simple sums, count, name capitals and tell a short story, but I do not know the answer to that."
)
HELP_ZH = (
    "我是一个很小的演示模型，专门用来测试部署。我会做简单的算术、数数、说出首都"
    "，也能讲一个短故事，但这个问题我答不上来。"
)

HAY_EN = (
    "The baker opened the shop while the street was still dark.",
    "A grey cat slept on the warm stones beside the well.",
    "Two carts of apples rolled slowly down the hill.",
    "The river was low, and children crossed it on flat rocks.",
    "My aunt repairs old radios in a room full of wires.",
    "Nobody remembered who had planted the tall cedar.",
    "The train stopped for ten minutes and then went on.",
    "She folded the letter twice and put it in a drawer.",
    "In winter the lake freezes and the boats are carried inside.",
    "He bought a blue notebook and wrote his plans in it.",
    "The teacher drew a circle on the board and smiled.",
    "Rain fell on the tin roof for most of the night.",
    "A bell rang twice, and the workers walked to the gate.",
    "The bread was good, but the soup was better.",
    "Swallows built a nest above the kitchen window.",
    "The map on the wall was older than the house.",
    "We waited for the ferry and shared a bag of nuts.",
    "A tailor and a poet lived on the same stairs.",
    "The garden had beans, garlic and one brave sunflower.",
    "Every Sunday the band played near the fountain.",
    "The keys were under the third pot, as always.",
    "It was a quiet village with a loud rooster.",
    "The captain wrote the weather in a small green book.",
    "Snow covered the road, so the post came by sledge.",
)
HAY_ZH = (
    "面包店天没亮就开了门。",
    "一只灰猫睡在井边的石头上。",
    "两车苹果慢慢地下了山。",
    "河水很浅，孩子们踩着石头过河。",
    "阿姨在房间里修理旧收音机。",
    "没有人记得这棵树是谁种的。",
    "火车停了十分钟，又继续向前。",
    "她把信折好，放进了抽屉。",
    "冬天湖面结冰，船都收进屋里。",
    "他买了一本蓝色的笔记本。",
    "老师在黑板上画了一个圆。",
    "雨在屋顶上下了大半夜。",
    "燕子在厨房的窗上做了一个窝。",
    "院子里种着豆角和一棵向日葵。",
    "每个星期天，乐队都在喷泉旁演奏。",
    "钥匙还是在第三个花盆下面。",
)

# A ship's log, in the shape of the long prompts of the smoke suite.
WINDS = ("north", "north-east", "east", "south-east", "south", "south-west", "west", "north-west")
SKIES = (
    "fog until noon", "clear sky", "low cloud", "hail at dusk", "thin rain", "a red dawn", "stars all night",
    "snow at noon", "a warm night",
)  # fmt: skip
SHIPS = tuple(
    "Aurora Marlin Petrel Saturn Juniper Kestrel Cormorant Harvest Mistral Osprey Vega Heron Comet Falcon Iris".split()
)
LOADS = (
    "timber", "salt", "wheat", "iron", "wool", "letters", "lamp oil", "cider", "slate", "rope", "apples", "tin", "tea",
    "bricks", "honey",
)  # fmt: skip
PLACES = ("harbour", "harbour", "harbour", "lighthouse", "island", "market", "garden", "bridge")
READ_EN = "I have read the log. What would you like to know?"

# country, capital, 国家, 首都
CAPITALS = tuple(
    tuple(row.split("|"))
    for row in """\
France|Paris|法国|巴黎
China|Beijing|中国|北京
Japan|Tokyo|日本|东京
Germany|Berlin|德国|柏林
Italy|Rome|意大利|罗马
Spain|Madrid|西班牙|马德里
Portugal|Lisbon|葡萄牙|里斯本
Russia|Moscow|俄罗斯|莫斯科
Egypt|Cairo|埃及|开罗
Greece|Athens|希腊|雅典
Canada|Ottawa|加拿大|渥太华
Australia|Canberra|澳大利亚|堪培拉
Brazil|Brasilia|巴西|巴西利亚
Argentina|Buenos Aires|阿根廷|布宜诺斯艾利斯
Mexico|Mexico City|墨西哥|墨西哥城
Norway|Oslo|挪威|奥斯陆
Sweden|Stockholm|瑞典|斯德哥尔摩
Finland|Helsinki|芬兰|赫尔辛基
Denmark|Copenhagen|丹麦|哥本哈根
Poland|Warsaw|波兰|华沙
Austria|Vienna|奥地利|维也纳
Ireland|Dublin|爱尔兰|都柏林
India|New Delhi|印度|新德里
Thailand|Bangkok|泰国|曼谷
Vietnam|Hanoi|越南|河内
Kenya|Nairobi|肯尼亚|内罗毕
Peru|Lima|秘鲁|利马
Chile|Santiago|智利|圣地亚哥
Cuba|Havana|古巴|哈瓦那
Turkey|Ankara|土耳其|安卡拉
South Korea|Seoul|韩国|首尔
the United Kingdom|London|英国|伦敦
the United States|Washington|美国|华盛顿""".splitlines()
)

FIRST = tuple(
    """Ada Bo Li Anna Ben Carl Dora Emil Fatima George Hana Ivan Jane Kofi Lena Maria Noor Oscar Paul Rosa Sam
Tara Uma Victor Wei Xin Yara Zoe Alan Grace Linus Mei Tom Ruth Omar Nina""".split()
)
LAST = tuple(
    """Lovelace Na Smith Jones Brown Chen Wang Garcia Kim Rossi Novak Silva Haddad Turing Hopper Fischer Okoro
Berg Moreau Tanaka Singh Costa Young Baker Stone Rivers Woods Marsh Field Parker""".split()
)
NAMES_ZH = tuple("王芳 李娜 张伟 陈晨 刘洋 赵敏 周杰 吴迪 孙丽 黄磊 林静 何平 郭涛 马云飞 罗兰 高远".split())
PETS = tuple(
    """Bo Rex Luna Max Coco Milo Daisy Rocky Pip Toby Nora Biscuit Shadow Pepper Olive Ziggy Bruno Mocha Juno
Fig""".split()
)
ANIMALS = ("dog", "cat", "horse", "parrot", "rabbit", "goat")
HOBBIES = ("keep bees", "like tea", "play chess", "paint boats", "live in Oslo", "work at night", "bake bread", "sail")
WORDS = tuple(
    """apple bridge candle dragon engine forest garden hammer island jacket kettle lantern marble needle orchid
pepper quartz ribbon saddle temple umbrella violet walnut yellow zebra anchor basket copper desert eagle falcon ginger
harbour ivory jungle kitten lemon meadow nectar ocean pebble river silver thunder velvet window autumn button cactus
dolphin ember feather granite hazel indigo jasmine lighthouse maple nutmeg otter purple robin sapphire turtle willow
bamboo cobalt daisy echo fountain glacier helmet iris kiwi lotus mango nickel opal piano raven salmon tulip crystal
heliotrope mandarin pineapple telescope""".split()
)
WORDS_ZH = tuple(
    "苹果 大桥 蜡烛 森林 花园 岛屿 灯笼 琥珀 菊花 竹子 月亮 星星 海豚 银河 雪山 风筝 石榴 松鼠 白鹤 钥匙".split()
)

SYSTEM = (
    "You are a helpful assistant.",
    "You are a helpful, concise assistant.",
    "Answer briefly.",
    "You are GLM-4, a test model.",
    "Be polite and exact.",
    "你是一个有用的助手。",
    "请简短回答。",
)

# Questions that the model cannot answer; the reply is HELP_EN or HELP_ZH.
ASK_EN = tuple(
    """\
Who are you?|What are you?|What can you do?|Are you a robot?|Who made you?|What is your name?|Tell me about yourself.
How does a compass work?|Why is the sky blue?|Explain quantum computing in simple terms.|What is machine learning?
Write a Python function that reverses a string.|What is the meaning of life?|Who wrote Hamlet?|What time is it?
How do I bake bread?|What is the weather today?|Translate this sentence into German.
Give me three tips for sleeping well.
What is the tallest mountain in the world?|How many legs does a spider have?|Who was the first person on the moon?
What is the boiling point of water?|Recommend a good book.|Summarize the news.|What is Docker?|What is a GPU?
Explain how a transformer model works.|What is the speed of light?|Fix this bug for me.|How old are you?
Write a haiku about snow.|What is photosynthesis?|List the planets of the solar system.|What is the largest ocean?
How far away is the sun?|Which is heavier, gold or iron?|What should I cook tonight?|Explain the theory of relativity.
What is the difference between a list and a tuple?|Who painted the Mona Lisa?|Is it going to rain tomorrow?
What does HTTP 404 mean?|Why do cats purr?|How do airplanes fly?|What is the square root of two?|Define entropy.
Can you help me with my homework?|What happened in 1969?|How do I learn to swim?|What colour is a banana?
Give me a recipe for soup.|What is the population of Tokyo?|Do you speak French?|How does a bicycle stay upright?
Name three fruits.|What is a black hole?|What is the best way to learn a language?|Why is the sea salty?
Explain recursion.|Who invented the telephone?|What is love?|Plan a trip to Italy.|What is a prime number?""".replace(
        "\n", "|"
    ).split("|")
)
ASK_ZH = tuple(
    """\
你是谁？|你叫什么名字？|你能做什么？|介绍一下你自己。|天空为什么是蓝色的？|什么是机器学习？|今天天气怎么样？|现在几点了？
怎么做面包？|谁写了红楼梦？|世界上最高的山是哪座？|光速是多少？|推荐一本好书。|什么是量子计算？|帮我写一段代码。|水的沸点是多少？
月亮离地球有多远？|猫为什么会打呼噜？|飞机是怎么飞起来的？|今晚吃什么好？|怎样学好英语？|解释一下相对论。|太阳系有哪些行星？
什么是黑洞？|请翻译这句话。|人生的意义是什么？|为什么海水是咸的？|给我三个睡得好的建议。|什么是显卡？|你会说法语吗？|电话是谁发明的？
什么是质数？|明天会下雨吗？|如何学会游泳？|请总结今天的新闻。|大象有多重？|什么是光合作用？|帮我做作业。|香蕉是什么颜色的？""".replace(
        "\n", "|"
    ).split("|")
)
TOPICS = tuple(
    """the sea|the moon|old trains|computers|history|mathematics|my job|the brain|music|football|volcanoes|a dream|
money|paper|salt|dinosaurs|the internet|cheese|ice|electricity|the law|birds|a poem|shoes|whales|sleep|gravity|robots|
the economy|coffee|glass|language|medicine|the desert|clouds|chess|networks|databases|security|physics""".replace(
        "\n", ""
    ).split("|")
)
TOPICS_ZH = tuple(
    """大海 月亮 火车 电脑 历史 数学 工作 大脑 音乐 足球 火山 梦 钱 纸 盐
恐龙 网络 冰 电 法律 鸟 鞋子 鲸鱼 咖啡 玻璃 语言 医学 沙漠 云 物理""".split()
)
